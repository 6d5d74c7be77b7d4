package cli

import (
	"gatepost/hook"
	"gatepost/ingress"
)

type noTemplates struct{}

func (noTemplates) Knows(string) bool { return false }

func (noTemplates) Fill(*hook.Mail, string, []string) (*ingress.Filled, error) {
	return nil, &hook.Invalid{Field: "type", Text: "has no template"}
}

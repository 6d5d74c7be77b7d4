package hook

// logto is the HTTP email connector of Logto. Its requests carry no key and its test button sends the same each time, so
// that two alike are two mails.
type logto struct{ unsigned }

func (logto) Retries() bool            { return false }
func (logto) Answer(a Answer) Response { return plainly(a) }

func (logto) Parse(body []byte) ([]Mail, error) {
	var r struct {
		To      string         `json:"to"`
		Type    string         `json:"type"`
		Payload map[string]any `json:"payload"`
		IP      string         `json:"ip"`
	}
	if err := decode(body, &r); err != nil {
		return nil, err
	}
	to, err := address("to", r.To)
	switch {
	case err != nil:
		return nil, err
	case clean(r.Type, maxType) == "":
		return nil, invalid("type", "is missing")
	case r.Payload == nil:
		return nil, invalid("payload", "is missing")
	}
	m := Mail{To: to, Type: clean(r.Type, maxType), Variables: r.Payload, IP: personIP(r.IP), Application: clean(text(r.Payload, "application", "id"), 128),
		Locales: locales(text(r.Payload, "uiLocales"), text(r.Payload, "locale"))}
	return []Mail{m}, nil
}

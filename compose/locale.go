package compose

import (
	"cmp"
	"slices"
	"strings"

	"golang.org/x/text/language"
)

// What is read of a list of languages: more tags, or longer ones, are nobody's preference.
const (
	maxLocales   = 10
	maxLocaleTag = 35 // RFC 5646 §4.4.1 has all tags of use fit this
)

// Locales reads lists of BCP 47 tags, best first, such as Logto's uiLocales (separated by spaces) and locale. What is no
// tag is left out: a language is a wish, and no reason to refuse a code.
func Locales(lists ...string) []language.Tag {
	var tags []language.Tag
	for _, list := range lists {
		if len(list) > maxLocales*(maxLocaleTag+1) {
			continue
		}
		for s := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ' ' || r == ',' || r == '\t' }) {
			tag, err := language.Parse(s)
			if err != nil || len(s) > maxLocaleTag || tag == language.Und || slices.Contains(tags, tag) || len(tags) == maxLocales {
				continue
			}
			tags = append(tags, tag)
		}
	}
	return tags
}

// find returns the template for a type: in one of the reader's languages, else of Generic in one of them, else in the
// default language, else Generic in that. Generic stands in only where its template has what the type needs.
func (t *Templates) find(f *family, wanted []language.Tag) (*template, *family) {
	generic := t.types[Generic]
	fallback := []language.Tag{language.Make(t.settings.DefaultLocale)}
	for _, try := range []struct {
		tags []language.Tag
		near bool
	}{{wanted, false}, {wanted, true}, {fallback, true}} {
		for _, in := range []*family{f, generic} {
			found := in.match(try.tags, try.near, t.settings.ChineseFallback)
			if found != nil && (in == f || f.Needs != "" && found.names(f.Needs)) {
				return found, in
			}
		}
	}
	if len(f.order) > 0 && f.Needs != generic.Needs { // its own language is better than what Generic cannot say
		return f.byLocale[f.order[0]](), f
	}
	return generic.byLocale[generic.order[0]](), generic
}

// match returns the template in the first of the wanted languages that there is one for, or nil. near also takes other
// languages that CLDR says its readers read, such as English for Swahili; chinese the other script of Chinese.
func (f *family) match(wanted []language.Tag, near, chinese bool) *template {
	if len(f.order) == 0 {
		return nil
	}
	for _, tag := range wanted {
		_, i, confidence := f.matcher.Match(tag)
		if !near && base(tag) != base(f.order[i]) {
			continue
		}
		if confidence >= language.High || confidence == language.Low && (chinese || base(tag) != chineseBase) {
			return f.byLocale[f.order[i]]()
		}
	}
	return nil
}

// chineseBase is the one language whose two scripts many readers do not share: one in place of the other is more than a
// blemish.
var chineseBase = base(language.Chinese)

// base returns the language of a tag without script and region.
func base(tag language.Tag) language.Base {
	b, _ := tag.Base()
	return b
}

// arrange completes f once all its templates are in.
func (f *family) arrange() {
	for tag := range f.byLocale {
		f.order = append(f.order, tag)
	}
	slices.SortFunc(f.order, func(a, b language.Tag) int { return cmp.Compare(a.String(), b.String()) })
	f.matcher = language.NewMatcher(f.order)
}

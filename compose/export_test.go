package compose

// What tests hold on its own.
var (
	Contrast = contrast
	OnColor  = onColor
	Clean    = clean
)

// FillMarkup fills every placeholder of src with value; false where src is refused or cannot be filled in.
func FillMarkup(src, value string) (string, bool) {
	m, problems := parseMarkup(src, nil)
	if len(problems) > 0 {
		return "", false
	}
	s, err := m.fill(everything(src, value))
	return s, err == nil
}

// FillPlain fills every placeholder of src with value, as a body and as a header field.
func FillPlain(src, value string) (body, header string, ok bool) {
	p := cut(src)
	v := everything(src, value)
	body, err := p.body(v)
	return body, p.header(v), err == nil
}

// everything is values that have value for each placeholder of src.
func everything(src, value string) *values {
	brand := map[string]string{}
	for _, m := range placeholder.FindAllStringSubmatch(src, -1) {
		brand[m[1]] = value
	}
	return &values{brand: brand}
}

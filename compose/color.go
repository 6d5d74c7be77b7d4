package compose

import (
	"math"
	"strconv"
)

// onColor returns white or black, whichever is easier to read on a colour. One of them always has a contrast of 4.5:1.
func onColor(background string) string {
	if contrast("#ffffff", background) >= contrast("#000000", background) {
		return "#ffffff"
	}
	return "#000000"
}

// contrast returns the contrast ratio of two colours, "#rrggbb", as WCAG 2.2 defines it.
func contrast(a, b string) float64 {
	x, y := luminance(a), luminance(b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

func luminance(color string) float64 {
	return 0.2126*channel(color[1:3]) + 0.7152*channel(color[3:5]) + 0.0722*channel(color[5:7])
}

// channel returns the linear intensity, from 0 to 1, of two hexadecimal digits.
func channel(digits string) float64 {
	n, err := strconv.ParseUint(digits, 16, 8)
	if err != nil {
		return 0
	}
	c := float64(n) / 255
	if c <= 0.04045 {
		return c / 12.92
	}
	return math.Pow((c+0.055)/1.055, 2.4)
}

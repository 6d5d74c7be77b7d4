package config

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

const (
	kilobyte = 1 << 10
	megabyte = 1 << 20
	gigabyte = 1 << 30
	day      = 24 * time.Hour
	longest  = 3650 * day // of every duration
)

// units of size, largest first. Sizes of mail are counted in powers of two here.
var units = []struct {
	name   string
	octets int64
}{{"GB", gigabyte}, {"MB", megabyte}, {"KB", kilobyte}}

// parseSize reads "25MB", "512KB", "1GB" or a number of octets.
func parseSize(s string) (int64, error) {
	number, scale := strings.ToUpper(s), int64(1)
	for _, u := range units {
		if n, ok := strings.CutSuffix(number, u.name); ok {
			number, scale = strings.TrimSpace(n), u.octets
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > 1<<62/scale {
		return 0, errors.New("is not a size")
	}
	return n * scale, nil
}

// formatSize writes what parseSize reads, in the largest unit that divides it.
func formatSize(n int64) string {
	for _, u := range units {
		if n >= u.octets && n%u.octets == 0 {
			return strconv.FormatInt(n/u.octets, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// parseDuration reads what time.ParseDuration reads, with days in front where there are any: "3d", "1d12h", "1h30m".
func parseDuration(s string) (time.Duration, error) {
	var days int64
	rest := s
	if n, tail, ok := strings.Cut(s, "d"); ok {
		var err error
		if days, err = strconv.ParseInt(n, 10, 32); err != nil || days < 0 || days > int64(longest/day) {
			return 0, errors.New("is not a duration")
		}
		if rest = tail; rest == "" {
			rest = "0s"
		}
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 || d > longest {
		return 0, errors.New("is not a duration")
	}
	return time.Duration(days)*day + d, nil
}

// formatDuration writes what parseDuration reads, without the parts that are zero.
func formatDuration(d time.Duration) string {
	var b strings.Builder
	if days := d / day; days > 0 {
		b.WriteString(strconv.FormatInt(int64(days), 10) + "d")
		if d %= day; d == 0 {
			return b.String()
		}
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	b.WriteString(s)
	return b.String()
}

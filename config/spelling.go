package config

import "strings"

// nearest returns the word that a misspelt one was most likely meant to be, or "".
func nearest(misspelt string, words []string) string {
	best, closest := "", 3
	for _, w := range words {
		if strings.HasPrefix(w, misspelt+"_") {
			return w
		}
		if d := distance(strings.ToLower(misspelt), w); d < closest && d < len(w) && d <= 1+len(w)/4 {
			best, closest = w, d
		}
	}
	return best
}

// distance is the number of letters to insert, delete or replace to get from a to b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			above := row[j+1]
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(above+1, row[j]+1, diagonal+cost)
			diagonal = above
		}
	}
	return row[len(b)]
}

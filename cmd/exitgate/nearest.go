package main

// nearest is the known word that word was most likely meant to be, or "": at most a third of its letters may be wrong.
func nearest(word string, known []string) string {
	best, at := "", len(word)/3+1
	for _, k := range known {
		if d := distance(word, k); d < at {
			best, at = k, d
		}
	}
	return best
}

// distance counts the bytes to insert, delete and replace between a and b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			next := corner
			if a[i] != b[j] {
				next = min(corner, row[j], row[j+1]) + 1
			}
			corner, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}

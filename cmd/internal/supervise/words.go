package supervise

import "encoding/json"

// Words are arguments, or an environment, as they cross to another process. A file's name and a variable hold any bytes but
// zero, and a string of JSON only UTF-8: json.Marshal puts U+FFFD in the place of others.
type Words []string

// MarshalJSON writes the bytes of each word in base64.
func (w Words) MarshalJSON() ([]byte, error) {
	var all [][]byte // nil stays nil
	for _, word := range w {
		all = append(all, []byte(word))
	}
	return json.Marshal(all)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (w *Words) UnmarshalJSON(b []byte) error {
	var all [][]byte
	if err := json.Unmarshal(b, &all); err != nil {
		return err
	}
	*w = nil
	for _, word := range all {
		*w = append(*w, string(word))
	}
	return nil
}

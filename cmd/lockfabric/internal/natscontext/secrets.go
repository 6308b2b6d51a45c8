package natscontext

import (
	"net/url"
	"slices"
	"strings"
)

// Secrets are texts that no message may contain.
type Secrets []string

// AddURLs adds what stands before the host in URLs: all of it, as it is written.
func (s *Secrets) AddURLs(list string) {
	for one := range strings.SplitSeq(list, ",") {
		u, err := url.Parse(strings.TrimSpace(one))
		if err != nil || u.User == nil {
			continue
		}
		*s = append(*s, u.User.String()+"@")
		secret, ok := u.User.Password()
		if !ok {
			secret = u.User.Username() // a lone user name is a token
		}
		*s = append(*s, secret)
	}
}

// Hide replaces them in a text. Short ones are left alone unless they stand in a
// URL: what they turn into riddles would tell what they are. Nobody writes
// them there on purpose; this is the net under it.
func (s Secrets) Hide(text string) string {
	const short = 6
	for _, secret := range slices.Backward(slices.SortedFunc(slices.Values(s), func(a, b string) int { return len(a) - len(b) })) {
		if end, ok := strings.CutSuffix(secret, "@"); ok && end != "" {
			text = strings.ReplaceAll(text, "//"+secret, "//xxxxx@")
		}
		if len(secret) >= short {
			text = strings.ReplaceAll(text, secret, "xxxxx")
			text = strings.ReplaceAll(text, url.PathEscape(secret), "xxxxx")
		}
	}
	return text
}

package record

import (
	"fmt"
	"strconv"
	"strings"
)

// parseOf reads an operation of another kind than locks, with the fields that locks don't have.
func (s *script) parseOf(kind Kind, words []string) Op {
	op := Op{Kind: kind, Verb: VerbNamed(words[0]), TTL: ttl, Limit: 3}
	if op.Verb == 0 {
		s.t.Fatalf("bad command %q", words)
	}
	for _, word := range words[1:] {
		name, value, ok := strings.Cut(word, "=")
		if !ok {
			op.ID, op.Lease = word, LeaseOf(word)
			continue
		}
		var err error
		switch name {
		case "n":
			op.N, err = strconv.Atoi(value)
		case "limit":
			op.Limit, err = strconv.Atoi(value)
		case "base":
			op.Base, err = strconv.ParseUint(value, 10, 64)
		case "life":
			op.Life, err = strconv.ParseUint(value, 10, 64)
		case "token":
			op.Token, err = parseTicket(value)
		case "holder":
			op.Holder = value
		case "value":
			op.Value = Value{Set: true, Data: value}
		case "fail":
			op.Fail, err = strconv.ParseBool(value)
		default:
			s.t.Fatalf("bad field %s", word)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	return op
}

// body shows the fields of the record besides its entries.
func (s *script) body(r *Record) {
	if r.Body == nil || r.Kind == KindLock {
		return
	}
	if fields := appendBody(nil, r.Body); len(fields) > 0 {
		fmt.Fprintf(s.out, "    %s\n", fields[1:])
	}
}

// take shows an entry's mode, or its permits.
func take(e Entry) string {
	switch {
	case e.Mode != None:
		return e.Mode.String()
	case e.Permits > 0 && e.Refused:
		return fmt.Sprintf("%d, refused,", e.Permits)
	case e.Permits > 0:
		return strconv.Itoa(e.Permits)
	}
	return ""
}

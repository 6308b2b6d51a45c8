package faultproxy

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

func TestReadFrame(t *testing.T) {
	tests := []struct {
		in                            string
		op, subject, reply, hdr, body string
		rest                          string
		raw                           string // empty: the same as in
	}{
		{in: "PING\r\n", op: "PING"},
		{in: "+OK\r\n", op: "+OK"},
		{in: "-ERR 'Stale Connection'\r\n", op: "-ERR"},
		{in: "\r\n", op: ""},
		{in: "SUB a.b 12\r\n", op: "SUB"},
		{in: "CONNECT {\"verbose\":false}\r\n", op: "CONNECT"},
		{in: "PUB a 2\r\nhi\r\n", op: "PUB", subject: "a", body: "hi"},
		{in: "pub a 2\r\nhi\r\n", op: "PUB", subject: "a", body: "hi"},
		{in: "PUB a\t r  0\r\n\r\n", op: "PUB", subject: "a", reply: "r"},
		{in: "PUB a 9\r\nx\r\nPING\r\n\r\nPONG\r\n", op: "PUB", subject: "a", body: "x\r\nPING\r\n", rest: "PONG\r\n", raw: "PUB a 9\r\nx\r\nPING\r\n\r\n"},
		{in: "HPUB a r 12 14\r\nNATS/1.0\r\n\r\nhi\r\nPING\r\n", op: "HPUB", subject: "a", reply: "r", hdr: "NATS/1.0\r\n\r\n", body: "hi", rest: "PING\r\n", raw: "HPUB a r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"},
		{in: "HPUB a 12 12\r\nNATS/1.0\r\n\r\n\r\n", op: "HPUB", subject: "a", hdr: "NATS/1.0\r\n\r\n"},
		{in: "MSG a 7 2\r\nhi\r\n", op: "MSG", subject: "a", body: "hi"},
		{in: "MSG a 7 r 2\r\nhi\r\n", op: "MSG", subject: "a", reply: "r", body: "hi"},
		{in: "HMSG a 7 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", op: "HMSG", subject: "a", hdr: "NATS/1.0\r\n\r\n", body: "hi"},
		{in: "HMSG a 7 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", op: "HMSG", subject: "a", reply: "r", hdr: "NATS/1.0\r\n\r\n", body: "hi"},
		{in: "INFO {\"a\":1,\"connect_urls\":[\"x\"],\"ws_connect_urls\":[\"y\"]}\r\n", op: "INFO", raw: "INFO {\"a\":1}\r\n"},
	}
	for _, tt := range tests {
		r := bufio.NewReader(strings.NewReader(tt.in))
		f, err := readFrame(r)
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		if tt.raw == "" {
			tt.raw = tt.in
		}
		rest, _ := io.ReadAll(r)
		if f.op != tt.op || f.subject != tt.subject || f.reply != tt.reply || string(f.header) != tt.hdr ||
			string(f.payload) != tt.body || string(f.raw) != tt.raw || string(rest) != tt.rest {
			t.Errorf("%q: got %+v, rest %q", tt.in, f, rest)
		}
	}
}

func TestReadFrameRefuses(t *testing.T) {
	for _, in := range []string{
		"PUB\r\n", "PUB a\r\n", "PUB a b c 1\r\nx\r\n", "PUB a -1\r\n", "PUB a x\r\n", "PUB a 99999999999\r\n",
		"PUB a 1\r\nxyz\r\n", "HPUB a 5 3\r\nabc\r\n", "HPUB a -1 3\r\nabc\r\n", "MSG a 1\r\n", "INFO nonsense\r\n", "INFO\r\n",
	} {
		if f, err := readFrame(bufio.NewReader(strings.NewReader(in))); !errors.Is(err, errProtocol) {
			t.Errorf("%q: %+v, %v", in, f, err)
		}
	}
	for _, in := range []string{"", "PING", "PUB a 5\r\nab"} {
		if f, err := readFrame(bufio.NewReader(strings.NewReader(in))); err == nil {
			t.Errorf("%q: %+v", in, f)
		}
	}
}

// Any input is either passed on unchanged or refused.
func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("PUB a 8\r\nx\r\nPING\r\r\nPING\r\n"))
	f.Add([]byte("HMSG a 7 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\nPONG\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bufio.NewReader(bytes.NewReader(in))
		var out []byte
		for {
			fr, err := readFrame(r)
			if err != nil {
				return
			}
			if fr.op == "INFO" {
				return
			}
			out = append(out, fr.raw...)
			if !bytes.HasPrefix(in, out) {
				t.Fatalf("%q became %q", in, out)
			}
		}
	})
}

func TestSubject(t *testing.T) {
	tests := []struct {
		pattern, subject string
		want             bool
	}{
		{"a.b", "a.b", true}, {"a.b", "a.c", false}, {"a.b", "a", false}, {"a", "a.b", false},
		{"a.*", "a.b", true}, {"a.*", "a.b.c", false}, {"a.*.c", "a.b.c", true},
		{"a.>", "a.b.c", true}, {"a.>", "a", false}, {">", "a", true},
	}
	for _, tt := range tests {
		if got := Subject(tt.pattern)(tt.subject, nil, nil); got != tt.want {
			t.Errorf("Subject(%q)(%q) = %v", tt.pattern, tt.subject, got)
		}
	}
}

func TestTimes(t *testing.T) {
	m := Times(2, Subject("a"))
	var got []bool
	for _, s := range []string{"a", "b", "a", "a"} {
		got = append(got, m(s, nil, nil))
	}
	if want := []bool{true, false, true, false}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

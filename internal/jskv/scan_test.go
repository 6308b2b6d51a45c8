package jskv

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"
)

// storedMessage is how servers write a message that was read.
type storedMessage struct {
	Subject  string    `json:"subject"`
	Sequence uint64    `json:"seq"`
	Header   []byte    `json:"hdrs,omitempty"`
	Data     []byte    `json:"data,omitempty"`
	Time     time.Time `json:"time"`
}

func answerOf(tb testing.TB, m storedMessage) []byte {
	tb.Helper()
	b, err := json.Marshal(struct {
		Type    string        `json:"type"`
		Message storedMessage `json:"message"`
	}{"io.nats.jetstream.api.v1.stream_msg_get_response", m})
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// FuzzScanRead: what the scan takes is what encoding/json reads there, if that takes it: it refuses more, control
// characters for one, which no server writes.
func FuzzScanRead(f *testing.F) {
	at := time.Date(2026, 11, 26, 18, 0, 0, 123456789, time.UTC)
	for _, m := range []storedMessage{
		{"$KV.f-locks.a", 7, nil, []byte(`{"v":3}`), at},
		{"$KV.f-locks.a", 1 << 63, []byte("NATS/1.0\r\nKV-Operation: PURGE\r\n\r\n"), nil, at},
		{"$KV.f-locks.a", 8, []byte("NATS/1.0\r\n\r\n"), []byte{0xff, 0xfe, 0xfb, 0}, at.Truncate(time.Second)},
	} {
		b := answerOf(f, m)
		if _, _, _, _, ok := scanRead(b); !ok {
			f.Errorf("not taken: %s", b)
		}
		f.Add(b)
		for i := range b {
			if _, _, _, _, ok := scanRead(b[:i]); ok {
				f.Errorf("taken: %s", b[:i])
			}
		}
		for _, extra := range []string{`"data":"eA==",`, `"seq":9,`, `"hdrs":"eA==",`, `"new":1,`} {
			more := bytes.Replace(b, []byte(`"time"`), []byte(extra+`"time"`), 1)
			if _, _, _, _, ok := scanRead(more); ok && (m.Data != nil || extra[1] != 'd') {
				f.Errorf("taken: %s", more)
			}
			f.Add(more)
		}
	}
	f.Add(answerOf(f, storedMessage{Subject: "$KV.f-locks.<&>", Sequence: 7, Data: []byte("x"), Time: at}))
	f.Add([]byte(`{"type":"io.nats.jetstream.api.v1.stream_msg_get_response","error":{"code":404,"err_code":10037}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		seq, header, value, when, ok := scanRead(b)
		if !ok {
			return
		}
		var want struct {
			Error   json.RawMessage `json:"error"`
			Message *storedMessage  `json:"message"`
		}
		err := json.Unmarshal(b, &want)
		if m := want.Message; err == nil && (len(want.Error) > 0 || m == nil || m.Sequence != seq ||
			!bytes.Equal(m.Header, header) || !bytes.Equal(m.Data, value) || !m.Time.Equal(when)) {
			t.Errorf("%q, %d, %q, %q, %s; encoding/json: %+v, %v", b, seq, header, value, when, want.Message, err)
		}
	})
}

func BenchmarkScanRead(b *testing.B) {
	answer := answerOf(b, storedMessage{"$KV.f-locks.a", 7, nil, bytes.Repeat([]byte("0123456789"), 700), time.Now().UTC()})
	b.SetBytes(int64(len(answer)))
	b.ReportAllocs()
	for b.Loop() {
		scanRead(answer)
	}
}

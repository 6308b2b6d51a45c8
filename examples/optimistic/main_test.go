package main

import (
	"bytes"
	"testing"
)

func TestRun(t *testing.T) {
	var out bytes.Buffer
	err := run(t.Context(), &out, "")
	want := `read without a lock: 100, valid
read without a lock: 130, not valid: a writer got in between
read under a shared lock: 100
ReadOptimistic: 100, after 2 calls
locked by a stamp: nothing has changed since
refused by the same stamp: somebody has held the lock since
`
	if err != nil || out.String() != want {
		t.Errorf("%v, printed\n%s\nwant\n%s", err, out.String(), want)
	}
}

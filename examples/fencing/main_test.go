package main

import (
	"bytes"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), &out, 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	const want = `first worker: acquired, and now held up
second worker: acquired with a larger token: true
second worker: wrote balance 100
first worker: late write refused: true
first worker: knows that it lost the lock: true
stored: balance 100
`
	if out.String() != want {
		t.Fatalf("printed\n%s\nwant\n%s", out.String(), want)
	}
}

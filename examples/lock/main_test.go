package main

import (
	"bytes"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), &out, "", 10*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	const want = "acquired resource-key\nwork done\nreleased resource-key\n"
	if out.String() != want {
		t.Fatalf("printed %q, want %q", out.String(), want)
	}
}

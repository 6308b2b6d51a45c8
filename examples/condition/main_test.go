package main

import (
	"bytes"
	"testing"
)

func TestRun(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), &out, "", 10); err != nil || out.String() != "10 items, each once\n" {
		t.Fatalf("%v, printed %q", err, out.String())
	}
}

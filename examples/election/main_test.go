package main

import (
	"bytes"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	var out bytes.Buffer
	err := run(t.Context(), &out, time.Second)
	const want = "a leads\na resigns\nb leads\nb crashes\nc leads\nc resigns\nnobody leads\n"
	if err != nil || out.String() != want {
		t.Fatalf("%v, printed\n%s\nwant\n%s", err, out.String(), want)
	}
}

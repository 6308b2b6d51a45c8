package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), &out, "", 10*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"task 1 works\n", "task 2 works\n", "task 3 works\n", "task 4 works\n", "task 5 works\n"} {
		if strings.Count(out.String(), line) != 1 {
			t.Errorf("no %q, or twice, in\n%s", line, out.String())
		}
	}
	if !strings.HasSuffix(out.String(), "works\nall done, one after the other\n") {
		t.Errorf("printed\n%s", out.String())
	}
}

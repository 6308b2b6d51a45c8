package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), &out, "", 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	if strings.Count(text, "begins") != 10 || strings.Count(text, "ends") != 10 || strings.Contains(text, "4 at work") {
		t.Errorf("printed\n%s", text)
	}
	if !strings.HasSuffix(text, "10 tasks done, at most 3 at a time\n") {
		t.Errorf("not all permits were used at once:\n%s", text)
	}
}

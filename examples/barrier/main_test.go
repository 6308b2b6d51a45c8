package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), &out, "", 0, 20*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	arrived, passed, _ := strings.Cut(out.String(), "passed")
	if strings.Count(arrived, "has arrived\n") != 3 || strings.Count("passed"+passed, "passed\n") != 3 {
		t.Errorf("somebody passed before all had come:\n%s", out.String())
	}
	for _, who := range []string{"participant 1 ", "participant 2 ", "participant 3 "} {
		if strings.Count(out.String(), who) != 2 {
			t.Errorf("%swas not there:\n%s", who, out.String())
		}
	}
}

func TestParticipants(t *testing.T) {
	if err := run(t.Context(), new(bytes.Buffer), "", 4, 0); err == nil || !strings.Contains(err.Error(), "participant 4") {
		t.Errorf("unknown participant: %v", err)
	}
}

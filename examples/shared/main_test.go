package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"
)

// TestMain is the program in the processes that the program starts.
func TestMain(m *testing.M) {
	if os.Getenv("EXAMPLE_IS_STARTED") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestRun(t *testing.T) {
	t.Setenv("EXAMPLE_IS_STARTED", "1")
	var out bytes.Buffer
	if err := run(t.Context(), &out, "", "", "", 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	for line, times := range map[string]int{
		"reader 1: reads\n": 2, "reader 2: reads\n": 2, "reader 3: reads\n": 2,
		"writer: reads, and may want to write\n":      1,
		"writer: writes alone\nwriter: has written\n": 1, // nobody else between
	} {
		if n := strings.Count(out.String(), line); n != times {
			t.Errorf("%d times %q, want %d, in\n%s", n, line, times, out.String())
		}
	}
}

func TestRoles(t *testing.T) {
	for role, want := range map[string]string{
		"reader": "reader: reads\nreader: reads\n",
		"writer": "writer: reads, and may want to write\nwriter: writes alone\nwriter: has written\n",
	} {
		var out bytes.Buffer
		if err := run(t.Context(), &out, "", role, role, time.Millisecond); err != nil || out.String() != want {
			t.Errorf("role %s: %v, printed\n%s\nwant\n%s", role, err, out.String(), want)
		}
	}
	if err := run(t.Context(), new(bytes.Buffer), "", "editor", "", 0); err == nil || !strings.Contains(err.Error(), "editor") {
		t.Errorf("unknown role: %v", err)
	}
}

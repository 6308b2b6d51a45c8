package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), &out, ""); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"granted  report by alice\n",
		"queued   report by bob, place 1 behind alice\n",
		"granted  report by bob\n",
		"released report by bob\n",
		"lost     cleanup by carol: fabric: the lease ran out before it could be renewed\n",
		"\nlockfabric_grants_total{mode=\"X\",queued=\"true\"} 1\n",
		"\nlockfabric_releases_total 2\n",
		"\nlockfabric_acquire_wait_seconds_count 3\n",
		"\nlockfabric_operations_total ",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("printed %q, want %q in it", out.String(), want)
		}
	}
}

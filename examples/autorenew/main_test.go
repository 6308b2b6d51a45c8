package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	for _, tc := range []struct {
		name     string
		renewals int
		want     []string
	}{
		{"the limit ends the task", 1, []string{"acquired long-running-task\n", "lost during step ", "reason: fabric: the renewals allowed by WithMaxRenewals are used up\n"}},
		{"without a limit it ends by itself", 0, []string{"acquired long-running-task\nall 20 steps done\n"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			// The task takes longer than the TTL with one renewal. A busy machine must be able to renew in time.
			job := task{ttl: 3 * time.Second, renew: 300 * time.Millisecond, renewals: tc.renewals, steps: 20, step: 200 * time.Millisecond}
			if err := job.run(t.Context(), &out); err != nil {
				t.Fatal(err)
			}
			for _, want := range tc.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("printed %q, want %q in it", out.String(), want)
				}
			}
		})
	}
}

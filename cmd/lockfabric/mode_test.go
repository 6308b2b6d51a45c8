//go:build unix

package main

import (
	"testing"
)

// Each mode beside every other one, as fabric.Mode has it.
func TestModes(t *testing.T) {
	t.Parallel()
	names := []string{"IS", "IX", "S", "SIX", "U", "X"}
	beside := map[string]string{"IS": "yyyyy-", "IX": "yy----", "S": "y-y-y-", "SIX": "y-----", "U": "y-y---", "X": "------"}
	for _, held := range names {
		t.Run(held, func(t *testing.T) {
			holder := start(t, lockfabric(t, "run", "k", "--mode", held, "--", self(t), "child", "TERM"))
			holder.ready()
			if info, err := manager(t).Inspect(t.Context(), "k"); err != nil || len(info.Holders) != 1 || string(info.Holders[0].Mode) != held {
				t.Fatalf("%+v, %v", info, err)
			}
			for i, asked := range names {
				want := 0
				if beside[held][i] == '-' {
					want = 75
				}
				if code, _, stderr := run(t, lockfabric(t, "run", "k", "--wait", "0", "--mode", asked, "--", "true")); code != want {
					t.Errorf("%s beside %s: exit code %d, want %d; %s", asked, held, code, want, stderr)
				}
			}
			holder.signal(killable)
			holder.exits(0)
		})
	}
}

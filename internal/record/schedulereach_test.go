package record

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// TestSchedulesReachEverything makes sure that the schedules above are worth something: that random
// similar ones reach every verdict, promotions of several at once, and full records.
func TestSchedulesReachEverything(t *testing.T) {
	t.Parallel()
	met := map[string]int{}
	gen := rapid.Custom(func(t *rapid.T) int {
		lim := Limits{MaxHolders: 4, MaxWaiters: 3, MaxBytes: 1726}
		w := &world{lim: lim, rev: 10, model: &oracle{lim: lim}}
		for range 40 {
			base, _ := w.read(t)
			before, _, _ := Apply(base, w.rev, nil, lim)
			w.step(t)
			after, _ := w.read(t)
			if after == nil {
				met["absent"]++
				continue
			}
			converting, granted := 0, 0
			for _, h := range before.Holders {
				if is, ok := after.Holder(h.ID); ok && h.Convert.ID != "" && is.Converted == h.Convert.ID {
					granted++
				}
			}
			for _, h := range after.Holders {
				if h.Convert.ID != "" {
					converting++
				}
			}
			met[fmt.Sprintf("%d convert", converting)]++
			met["conversion granted later"+map[int]string{0: ": none", 2: ", 2 at once"}[granted]]++
			promoted := 0
			for _, e := range before.Waiters {
				if _, ok := after.Holder(e.ID); ok {
					promoted++
				}
			}
			met[fmt.Sprintf("%d promoted at once", promoted)]++
			met[fmt.Sprintf("%d wait", len(after.Waiters))]++
			met[fmt.Sprintf("%d hold", len(after.Holders))]++
			op := w.anyOp(t)
			_, results, _ := Apply(after, w.rev, []Op{op}, lim)
			met[op.Verb.String()+": "+results[0].Verdict.String()]++
		}
		return 0
	})
	for seed := range 350 {
		gen.Example(seed)
	}
	for _, event := range []string{"absent", "2 promoted at once", "3 wait", "3 hold", "acquire: applied", "acquire: already held", "acquire: queue full", "acquire: wait too long",
		"acquire: lease mismatch", "try: applied", "try: held", "try: already held", "try: lease mismatch", "release: applied", "evict: applied", "revoke: applied", "remove: applied",
		"convert: applied", "convert: conversion pending", "convert: conversion would deadlock", "convert: hold is revoked", "convert: lease mismatch",
		"unconvert: applied", "stop-waiting: applied", "1 convert", "2 convert", "conversion granted later", "conversion granted later, 2 at once"} {
		if met[event] == 0 {
			t.Errorf("no schedule met %q", event)
		}
	}
	t.Log(met)
}

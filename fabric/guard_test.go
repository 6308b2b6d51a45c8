package fabric_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/lockfabric/lockfabric/fabric"
)

func TestRule13_Guard(t *testing.T) {
	type step struct {
		mode  fabric.Mode
		token uint64
		ok    bool
	}
	const x, s, u = fabric.Exclusive, fabric.Shared, fabric.Update
	const ix, six, is = fabric.IntentExclusive, fabric.SharedIntentExclusive, fabric.IntentShared
	for name, steps := range map[string][]step{
		"no hold has token 0":                         {{x, 0, false}, {s, 0, false}},
		"tokens rise":                                 {{x, 5, true}, {x, 9, true}, {x, 10, true}},
		"a paused writer":                             {{x, 5, true}, {x, 9, true}, {x, 5, false}, {x, 9, true}},
		"a paused writer, then a reader":              {{x, 5, true}, {s, 9, true}, {x, 5, false}, {s, 9, true}},
		"a paused reader, then a writer":              {{s, 5, true}, {x, 9, true}, {s, 5, false}, {x, 9, true}},
		"readers together, in any order":              {{x, 4, true}, {s, 9, true}, {s, 5, true}, {s, 7, true}},
		"a downgraded writer keeps its token":         {{x, 5, true}, {s, 5, true}, {s, 7, true}, {s, 5, true}},
		"an upgraded reader gets a larger one":        {{s, 5, true}, {s, 6, true}, {x, 7, true}, {s, 6, false}},
		"a refused one changes nothing":               {{x, 5, true}, {x, 3, false}, {s, 4, false}, {x, 5, true}, {s, 5, true}},
		"a writer of the time of admitted readers":    {{s, 9, true}, {x, 8, false}, {s, 8, true}},
		"an updater reads beside readers":             {{u, 5, true}, {s, 9, true}, {u, 5, true}, {s, 4, true}},
		"an updater, and its successor":               {{u, 5, true}, {u, 9, true}, {u, 5, false}, {s, 7, true}},
		"an updater that was upgraded":                {{u, 5, true}, {s, 6, true}, {x, 8, true}, {u, 5, false}, {s, 6, false}, {u, 8, true}},
		"writers below, side by side":                 {{ix, 5, true}, {ix, 9, true}, {ix, 5, true}, {is, 3, true}},
		"a writer below, and a reader of all":         {{ix, 5, true}, {s, 9, true}, {ix, 5, false}, {six, 8, false}, {is, 2, true}},
		"a paused reader of all, then writers below":  {{s, 5, true}, {ix, 9, true}, {s, 5, false}, {u, 7, false}, {x, 8, false}},
		"a reader of all who writes below":            {{six, 5, true}, {is, 9, true}, {six, 5, true}, {six, 7, true}, {six, 5, false}},
		"two downgraded writers, one after the other": {{x, 5, true}, {x, 8, true}, {s, 5, false}, {s, 8, true}},
	} {
		var g fabric.Guard
		var seen uint64
		for i, st := range steps {
			err := g.Admit(st.mode, st.token)
			if (err == nil) != st.ok {
				t.Errorf("%s: step %d, %s %d: %v", name, i, st.mode, st.token, err)
			}
			var stale *fabric.StaleTokenError
			if err != nil && (!errors.Is(err, fabric.ErrStaleToken) || !errors.As(err, &stale) || stale.Token != st.token) {
				t.Errorf("%s: step %d: %v", name, i, err)
			}
			if err == nil {
				seen = max(seen, st.token)
			}
			if g.Seen() != seen {
				t.Errorf("%s: step %d: seen %d, want %d", name, i, g.Seen(), seen)
			}
		}
	}
}

// Any history of grants, whose holders turn up at the guard in any order and any
// number of times: a hold is refused if and only if one that was granted later,
// and that conflicts with it, has been admitted.
func TestRule13_GuardProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type hold struct {
			mode  fabric.Mode
			token uint64
		}
		var holds []hold
		token := uint64(0)
		for range rapid.IntRange(1, 12).Draw(t, "grants") {
			token += rapid.Uint64Range(1, 5).Draw(t, "gap")
			mode := rapid.SampledFrom(append(modes, fabric.Exclusive, fabric.Shared)).Draw(t, "mode")
			holds = append(holds, hold{mode, token})
		}
		var g fabric.Guard
		var admitted []hold
		for range rapid.IntRange(1, 40).Draw(t, "writes") {
			h := rapid.SampledFrom(holds).Draw(t, "hold")
			replaced := slices.ContainsFunc(admitted, func(a hold) bool {
				return a.token > h.token && !compatible(a.mode, h.mode)
			})
			if err := g.Admit(h.mode, h.token); (err != nil) != replaced {
				t.Fatalf("%s %d after %v: %v", h.mode, h.token, admitted, err)
			}
			if !replaced {
				admitted = append(admitted, h)
			}
		}
	})
}

func TestGuardRefusesWhatIsNoMode(t *testing.T) {
	var g fabric.Guard
	for _, bad := range []fabric.Mode{"", "s", "None", "XX"} {
		if err := g.Admit(bad, 5); !errors.Is(err, fabric.ErrInvalidOption) || g.Seen() != 0 {
			t.Errorf("%q: %v, seen %d", bad, err, g.Seen())
		}
	}
}

// Holds of one entry share its token; the pair tells an ended one of them apart, and the number alone does not.
func TestK6_ThePairTellsHoldsApart(t *testing.T) {
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m := s.manager(t, fabric.WithKeep(time.Minute))
		key := s.keptAlready(t, m)
		var g, numbers fabric.Guard
		admit := func(g *fabric.Guard, token uint64, use ...uint64) error {
			return g.Admit(fabric.Exclusive, token, use...)
		}
		var tokens, uses []uint64
		for range 3 {
			l := acquire(t, m, key)
			token, use := l.Grant()
			if err := errors.Join(admit(&g, token, use), admit(&g, token, use), admit(&numbers, token)); err != nil {
				t.Error(err)
			}
			tokens, uses = append(tokens, token), append(uses, use)
			release(t, l)
		}
		if tokens[0] != tokens[2] || uses[0] >= uses[1] || uses[1] >= uses[2] {
			t.Errorf("tokens %d, uses %d", tokens, uses)
		}
		for i, late := range uses[:2] {
			if err := admit(&g, tokens[i], late); !errors.Is(err, fabric.ErrStaleToken) {
				t.Errorf("use %d is admitted late: %v", late, err)
			}
		}
		if err := admit(&numbers, tokens[0]); err != nil {
			t.Error(err)
		}
	})
}

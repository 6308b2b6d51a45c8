package record

import (
	"encoding/json"
	"errors"
	"testing"
)

// modeTable is the matrix of the design, written out: 36 pairs, not derived from anything. The
// oracle uses it too.
var modeTable = []struct {
	held, want string
	ok         bool
}{
	{"IS", "IS", true}, {"IS", "IX", true}, {"IS", "S", true}, {"IS", "SIX", true}, {"IS", "U", true}, {"IS", "X", false},
	{"IX", "IS", true}, {"IX", "IX", true}, {"IX", "S", false}, {"IX", "SIX", false}, {"IX", "U", false}, {"IX", "X", false},
	{"S", "IS", true}, {"S", "IX", false}, {"S", "S", true}, {"S", "SIX", false}, {"S", "U", true}, {"S", "X", false},
	{"SIX", "IS", true}, {"SIX", "IX", false}, {"SIX", "S", false}, {"SIX", "SIX", false}, {"SIX", "U", false}, {"SIX", "X", false},
	{"U", "IS", true}, {"U", "IX", false}, {"U", "S", true}, {"U", "SIX", false}, {"U", "U", false}, {"U", "X", false},
	{"X", "IS", false}, {"X", "IX", false}, {"X", "S", false}, {"X", "SIX", false}, {"X", "U", false}, {"X", "X", false},
}

func TestModeMatrix(t *testing.T) {
	seen := map[[2]Mode]bool{}
	for _, row := range modeTable {
		held, err := ParseMode(row.held)
		if err != nil {
			t.Fatal(err)
		}
		want, err := ParseMode(row.want)
		if err != nil {
			t.Fatal(err)
		}
		seen[[2]Mode{held, want}] = true
		if got := Compatible(held, want); got != row.ok {
			t.Errorf("Compatible(%s, %s) = %v", held, want, got)
		}
		if Compatible(held, want) != Compatible(want, held) {
			t.Errorf("%s and %s: not symmetric", held, want)
		}
	}
	if len(seen) != 36 {
		t.Errorf("the table has %d pairs", len(seen))
	}
}

func TestInvalidModeIsCompatibleWithNothing(t *testing.T) {
	for _, bad := range []Mode{None, X + 1, 8, 200} {
		if bad.Valid() {
			t.Errorf("%s is valid", bad)
		}
		for m := None; m <= X+1; m++ {
			if Compatible(bad, m) || Compatible(m, bad) {
				t.Errorf("%s and %s are compatible", bad, m)
			}
		}
	}
}

func TestModeNames(t *testing.T) {
	for m := IS; m <= X; m++ {
		if got, err := ParseMode(m.String()); err != nil || got != m {
			t.Errorf("ParseMode(%s) = %s, %v", m, got, err)
		}
		text, err := json.Marshal(m)
		if err != nil || string(text) != `"`+m.String()+`"` {
			t.Errorf("Marshal(%s) = %s, %v", m, text, err)
		}
		var back Mode
		if err := json.Unmarshal(text, &back); err != nil || back != m {
			t.Errorf("Unmarshal(%s) = %s, %v", text, back, err)
		}
	}
	for _, bad := range []string{"", "None", "x", "is", "SIXX", " X", "Mode(7)"} {
		if m, err := ParseMode(bad); !errors.Is(err, ErrInvalidMode) || m != None {
			t.Errorf("ParseMode(%q) = %s, %v", bad, m, err)
		}
	}
	kept := S
	if err := kept.UnmarshalText([]byte("nonsense")); !errors.Is(err, ErrInvalidMode) || kept != S {
		t.Errorf("UnmarshalText: %v, mode is now %s", err, kept)
	}
	for _, bad := range []Mode{None, 7} {
		if _, err := bad.MarshalText(); !errors.Is(err, ErrInvalidMode) {
			t.Errorf("MarshalText of %s: %v", bad, err)
		}
	}
	if got := Mode(9).String(); got != "Mode(9)" {
		t.Error(got)
	}
}

func TestJoinIsTheLeastModeThatCoversBoth(t *testing.T) {
	for _, c := range []struct{ a, b, want Mode }{
		{S, IX, SIX}, {U, IX, SIX}, {S, U, U}, {IS, IX, IX}, {IS, S, S}, {X, IS, X}, {SIX, U, SIX}, {IS, IS, IS}, {None, X, None},
	} {
		if got := Join(c.a, c.b); got != c.want || got != Join(c.b, c.a) {
			t.Errorf("Join(%v, %v) = %v, want %v", c.a, c.b, got, c.want)
		}
	}
	for a := IS; a <= X; a++ {
		for b := IS; b <= X; b++ {
			j := Join(a, b)
			for m := IS; m <= X; m++ {
				if m.Covers(a) && m.Covers(b) && !m.Covers(j) {
					t.Errorf("Join(%v, %v) = %v, but %v covers both and not that", a, b, j, m)
				}
			}
		}
	}
}

package chaos_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/test/chaos"
)

type fakeHold struct {
	id    string
	mode  fabric.Mode
	token uint64
	err   error
}

func (h *fakeHold) Key() string       { return "k" }
func (h *fakeHold) ID() string        { return h.id }
func (h *fakeHold) Mode() fabric.Mode { return h.mode }
func (h *fakeHold) Token() uint64     { return h.token }
func (h *fakeHold) Err() error        { return h.err }

// Grant has a use for each + in the id.
func (h *fakeHold) Grant() (token, use uint64) {
	return h.token, 1 + uint64(strings.Count(h.id, "+"))
}

func TestOracle(t *testing.T) {
	lost := errors.New("lost")
	const x, s = fabric.Exclusive, fabric.Shared
	type step struct {
		hold fakeHold
		ends bool // right after its grant
	}
	tests := []struct {
		name  string
		steps []step
		want  int // violations
	}{
		{"one after the other", []step{{fakeHold{"a.1", x, 5, nil}, true}, {fakeHold{"b.1", x, 6, nil}, true}}, 0},
		{"two exclusive", []step{{fakeHold{"a.1", x, 5, nil}, false}, {fakeHold{"b.1", x, 6, nil}, false}}, 1},
		{"shared beside exclusive", []step{{fakeHold{"a.1", x, 5, nil}, false}, {fakeHold{"b.1", s, 6, nil}, false}}, 1},
		{"exclusive beside shared", []step{{fakeHold{"a.1", s, 5, nil}, false}, {fakeHold{"b.1", s, 6, nil}, false}, {fakeHold{"c.1", x, 7, nil}, false}}, 2},
		{"shared together", []step{{fakeHold{"a.1", s, 5, nil}, false}, {fakeHold{"b.1", s, 5, nil}, false}, {fakeHold{"c.1", s, 4, nil}, false}}, 0},
		{"the first is lost", []step{{fakeHold{"a.1", x, 5, lost}, false}, {fakeHold{"b.1", x, 6, nil}, false}}, 0},
		{"the second was lost before it was shown", []step{{fakeHold{"a.1", x, 5, nil}, false}, {fakeHold{"b.1", x, 4, lost}, false}}, 0},
		{"token repeated", []step{{fakeHold{"a.1", x, 5, nil}, true}, {fakeHold{"b.1", x, 5, nil}, true}}, 2},
		{"token repeated by the next use", []step{{fakeHold{"a.1", x, 5, nil}, true}, {fakeHold{"a.1+", x, 5, nil}, true}, {fakeHold{"a.1++", x, 5, nil}, true}}, 0},
		{"use repeated", []step{{fakeHold{"a.1+", x, 5, nil}, true}, {fakeHold{"a.1+", x, 5, nil}, true}}, 2},
		{"token of a writer shared", []step{{fakeHold{"a.1", s, 5, nil}, true}, {fakeHold{"b.1", x, 5, nil}, true}}, 2},
		{"token of a reader passed", []step{{fakeHold{"a.1", s, 5, nil}, true}, {fakeHold{"b.1", x, 4, nil}, true}}, 1},
		{"reader below a writer", []step{{fakeHold{"a.1", x, 5, nil}, true}, {fakeHold{"b.1", s, 4, nil}, true}}, 1},
	}
	for _, tt := range tests {
		var o chaos.Oracle
		for _, st := range tt.steps {
			o.Granted(&st.hold, o.Mark("k"))
			if st.ends {
				o.Ending(&st.hold)
			}
		}
		if got := o.Stats().Violations; len(got) != tt.want {
			t.Errorf("%s: violations %q, want %d", tt.name, got, tt.want)
		}
	}
}

// Two holders that an operator has made valid at the same time may show their tokens in any order.
// But an acquire that was called after one of them was granted gets no smaller token.
func TestOracleOfTokensOnly(t *testing.T) {
	o := chaos.Oracle{TokensOnly: true}
	early := o.Mark("k")
	o.Granted(&fakeHold{"a.1", fabric.Exclusive, 8, nil}, early)
	o.Granted(&fakeHold{"b.1", fabric.Exclusive, 7, nil}, early)
	o.Granted(&fakeHold{"a.1+", fabric.Exclusive, 8, nil}, early) // handed on to one who waited before anybody held
	if got := o.Stats().Violations; len(got) != 0 {
		t.Errorf("violations %q", got)
	}
	o.Granted(&fakeHold{"c.1", fabric.Exclusive, 6, nil}, o.Mark("k"))
	if got := o.Stats().Violations; len(got) != 1 {
		t.Errorf("violations %q", got)
	}
}

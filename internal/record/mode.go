package record

import "fmt"

// Mode is a lock mode: how much of a resource an entry claims, and so whom it excludes.
type Mode uint8

// The modes of multi-granularity locking. An intention mode on a resource announces locks on what
// lies below it. The zero Mode is no mode: nothing holds it and nothing is compatible with it.
const (
	None Mode = iota
	IS        // intends to read something below
	IX        // intends to write something below
	S         // reads
	SIX       // reads, and intends to write something below
	U         // reads, and may want X later: readers are let in beside it, a second U is not
	X         // writes: excludes everybody
)

// modeSet is a set of modes, one bit each.
type modeSet uint8

func (s modeSet) with(m Mode) modeSet { return s | 1<<m }

// admits reports whether m is compatible with every mode in s.
func (s modeSet) admits(m Mode) bool { return m.Valid() && s&^compatible[m] == 0 }

// compatible maps a mode to those that may be held beside it. The relation is symmetric.
var compatible = [...]modeSet{
	None: 0,
	IS:   1<<IS | 1<<IX | 1<<S | 1<<SIX | 1<<U,
	IX:   1<<IS | 1<<IX,
	S:    1<<IS | 1<<S | 1<<U,
	SIX:  1 << IS,
	U:    1<<IS | 1<<S,
	X:    0,
}

var modeNames = [...]string{None: "None", IS: "IS", IX: "IX", S: "S", SIX: "SIX", U: "U", X: "X"}

// Compatible reports whether want may be granted while held is held by somebody else. It is
// symmetric, and false when either is not valid.
func Compatible(held, want Mode) bool {
	return held.Valid() && modeSet(0).with(held).admits(want)
}

// ParseMode is the inverse of String for the valid modes; anything else is ErrInvalidMode.
// Upper case only, as in the stored record.
func ParseMode(s string) (Mode, error) {
	if m := modeOf([]byte(s)); m.Valid() {
		return m, nil
	}
	return None, fmt.Errorf("%w (got %q)", ErrInvalidMode, s)
}

// modeOf returns None for a name it doesn't know.
func modeOf(name []byte) Mode {
	for m := IS; m <= X; m++ {
		if string(name) == modeNames[m] {
			return m
		}
	}
	return None
}

// Valid reports whether m is one of IS, IX, S, SIX, U and X.
func (m Mode) Valid() bool { return m >= IS && m <= X }

// Exclusive reports whether m excludes everybody else, which only X does.
func (m Mode) Exclusive() bool { return m == X }

func (m Mode) String() string {
	if m > X {
		return fmt.Sprintf("Mode(%d)", uint8(m))
	}
	return modeNames[m]
}

// MarshalText makes a mode its name in JSON. A mode that is not valid is ErrInvalidMode.
func (m Mode) MarshalText() ([]byte, error) {
	if !m.Valid() {
		return nil, fmt.Errorf("%w (got %s)", ErrInvalidMode, m)
	}
	return []byte(modeNames[m]), nil
}

// UnmarshalText is the inverse of MarshalText; on failure m is left unchanged.
func (m *Mode) UnmarshalText(text []byte) error {
	parsed, err := ParseMode(string(text))
	if err != nil {
		return err
	}
	*m = parsed
	return nil
}

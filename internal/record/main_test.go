package record

import (
	"maps"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Clone returns a deep copy.
func (r *Record) Clone() *Record {
	c := r.clone()
	for e := range c.entries() {
		e.Meta = maps.Clone(e.Meta)
	}
	return c
}

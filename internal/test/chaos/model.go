package chaos

import (
	"fmt"
	"slices"

	"github.com/anishathalye/porcupine"

	"github.com/lockfabric/lockfabric/fabric"
)

// lockState is the state of one lock in the model. It is never modified.
type lockState struct {
	holders   []string // sorted ids
	exclusive bool     // the one holder is exclusive
	highX     uint64   // highest exclusive token granted
	high      uint64   // highest token granted
}

// fencedLock is the model of a lock with shared and exclusive holds and fencing
// tokens, one for each key.
func fencedLock() porcupine.Model {
	return porcupine.Model{
		Partition: byKey,
		Init:      func() any { return lockState{} },
		Step: func(state, input, _ any) (bool, any) {
			s, e := state.(lockState), input.(event)
			if e.release {
				return s.release(e)
			}
			return s.acquire(e)
		},
		Equal: func(a, b any) bool {
			x, y := a.(lockState), b.(lockState)
			return x.exclusive == y.exclusive && x.highX == y.highX && x.high == y.high && slices.Equal(x.holders, y.holders)
		},
		DescribeOperation: func(input, _ any) string { return fmt.Sprintf("%+v", input) },
		DescribeState:     func(state any) string { return fmt.Sprintf("%+v", state) },
	}
}

func (s lockState) acquire(e event) (bool, any) {
	if e.mode == fabric.Shared {
		if s.exclusive || e.token <= s.highX {
			return false, s
		}
	} else if len(s.holders) > 0 || e.token <= s.high {
		return false, s
	}
	next := lockState{holders: append(slices.Clone(s.holders), e.id), exclusive: e.mode == fabric.Exclusive, highX: s.highX, high: max(s.high, e.token)}
	slices.Sort(next.holders)
	if next.exclusive {
		next.highX = e.token
	}
	return true, next
}

// release of an id without a hold is only possible for a release whose outcome is
// unknown: a lock that was granted and not lost can be released.
func (s lockState) release(e event) (bool, any) {
	i := slices.Index(s.holders, e.id)
	if i < 0 {
		return e.unsure, s
	}
	next := lockState{holders: slices.Delete(slices.Clone(s.holders), i, i+1), highX: s.highX, high: s.high}
	return true, next
}

func byKey(history []porcupine.Operation) [][]porcupine.Operation {
	parts := make(map[string][]porcupine.Operation)
	for _, op := range history {
		key := op.Input.(event).key
		parts[key] = append(parts[key], op)
	}
	var out [][]porcupine.Operation
	for _, part := range parts {
		out = append(out, part)
	}
	return out
}

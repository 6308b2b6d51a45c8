package fabric

import (
	"sync"

	"github.com/lockfabric/lockfabric/internal/record"
)

// Guard is the receiving side of fencing, in memory: the owner of a resource asks
// it before every write whether the writer's token is still good. The zero
// Guard is ready; one guard belongs to one resource and one lock name. It forgets
// when its process ends; see [Register] for one that does not. It is safe for
// concurrent use.
//
// The rule is that of the tokens, which increase strictly between conflicting
// holds: a token is refused when a larger one was admitted in a mode that can't be
// held beside its own. So an exclusive token must not be below any token seen, and a
// shared or update one not below the highest exclusive one. A holder that
// downgraded keeps its token, so an equal one is good; after an upgrade only the new
// token may be used.
//
// Holders that may hold together are not kept apart by tokens either, since they
// may come in any order. That matters for the modes with which one writes below
// a resource: two holders of IntentExclusive are let in side by side, also when
// one of them has lost its hold meanwhile. Those modes allow no write to the
// resource itself. Write under an Exclusive lock on the part, and guard that part
// with that lock's token.
type Guard struct {
	mu       sync.Mutex
	admitted [record.X + 1]uint64 // the highest token of each mode
}

// Admit admits the token of a hold in the given mode, or returns a
// *StaleTokenError (ErrStaleToken) and changes nothing. What is no mode is
// ErrInvalidOption, and not admitted either.
func (g *Guard) Admit(mode Mode, token uint64) error {
	want, err := mode.record()
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	var highest uint64 // of those that have replaced, or were replaced by, this one
	for m := record.IS; m <= record.X; m++ {
		if !record.Compatible(m, want) {
			highest = max(highest, g.admitted[m])
		}
	}
	if token == 0 || token < highest {
		return &StaleTokenError{Token: token, Highest: highest}
	}
	g.admitted[want] = max(g.admitted[want], token)
	return nil
}

// Seen returns the highest token admitted.
func (g *Guard) Seen() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	var seen uint64
	for _, token := range g.admitted {
		seen = max(seen, token)
	}
	return seen
}

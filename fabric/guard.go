package fabric

import "sync"

// Guard is the receiving side of fencing, in memory: the owner of a resource asks
// it before every write whether the writer's token is still good. The zero
// Guard is ready; one guard belongs to one resource and one lock name. It forgets
// when its process ends; see [Register] for one that does not. It is safe for
// concurrent use.
//
// The rule is that of the tokens, which increase strictly between conflicting
// holds: an exclusive token must not be below any token seen, a shared one not
// below the highest exclusive one. A holder that downgraded keeps its token, so an
// equal one is good.
type Guard struct {
	mu        sync.Mutex
	exclusive uint64 // highest exclusive token admitted
	shared    uint64 // highest shared token admitted
}

// Admit admits the token of a hold in the given mode, or returns a
// *StaleTokenError (ErrStaleToken) and changes nothing.
func (g *Guard) Admit(mode Mode, token uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	highest := g.exclusive
	if mode == Exclusive {
		highest = max(highest, g.shared)
	}
	if token == 0 || token < highest {
		return &StaleTokenError{Token: token, Highest: highest}
	}
	if mode == Exclusive {
		g.exclusive = token
	} else {
		g.shared = max(g.shared, token)
	}
	return nil
}

// Seen returns the highest token admitted.
func (g *Guard) Seen() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(g.exclusive, g.shared)
}

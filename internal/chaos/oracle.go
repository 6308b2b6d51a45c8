package chaos

import (
	"fmt"
	"strings"
	"sync"

	"github.com/lockfabric/lockfabric/fabric"
)

// Hold is what the oracle needs of a handle; *fabric.Lock is one.
type Hold interface {
	Key() string
	ID() string
	Mode() fabric.Mode
	Token() uint64
	Err() error
}

// Oracle checks holds against each other at the moment of every grant. It is
// safe for concurrent use.
type Oracle struct {
	// TokensOnly leaves overlaps out, for scenarios in which an operator removes
	// holds at once: only the tokens are promised then. Set it before use.
	TokensOnly bool

	mu    sync.Mutex
	keys  map[string]*heldKey
	stats OracleStats
}

// OracleStats is what an oracle has seen.
type OracleStats struct {
	Exclusive  uint64   // grants
	Shared     uint64   // grants
	Handoffs   uint64   // grants of a key to another lease than the one before
	Stale      uint64   // handles that had ended before they were shown
	Beside     uint64   // shared grants beside another shared hold
	Violations []string // the first ones
}

// heldKey is what is known of one key.
type heldKey struct {
	holds     map[Hold]struct{}
	exclusive uint64 // highest token
	shared    uint64
	by        string // lease of the last grant
}

// maxViolations bounds what is kept: after the first the others say little.
const maxViolations = 20

// Granted shows a fresh handle to the oracle and reports whether it was valid
// then. The caller calls Ending before it releases the handle, and after it
// found it lost.
func (o *Oracle) Granted(h Hold) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.keys == nil {
		o.keys = make(map[string]*heldKey)
	}
	k := o.keys[h.Key()]
	if k == nil {
		k = &heldKey{holds: make(map[Hold]struct{})}
		o.keys[h.Key()] = k
	}
	// The new one first: who is valid after it was valid at the same time.
	if h.Err() != nil {
		o.stats.Stale++
		return false
	}
	for other := range k.holds {
		if h.Mode() == fabric.Shared && other.Mode() == fabric.Shared {
			continue
		}
		if other.Err() == nil && !o.TokensOnly {
			o.violated("overlap on %q: %s", h.Key(), describe(h, other))
		}
	}
	o.checkToken(k, h)
	if len(k.holds) > 0 {
		o.stats.Beside++
	}
	k.holds[h] = struct{}{}
	if by := leaseOf(h.ID()); by != k.by {
		o.stats.Handoffs++
		k.by = by
	}
	return true
}

func (o *Oracle) checkToken(k *heldKey, h Hold) {
	if h.Mode() == fabric.Shared {
		o.stats.Shared++
		if h.Token() <= k.exclusive {
			o.violated("shared token %d of %q is not above the exclusive one %d", h.Token(), h.Key(), k.exclusive)
		}
		k.shared = max(k.shared, h.Token())
		return
	}
	o.stats.Exclusive++
	if highest := max(k.exclusive, k.shared); h.Token() <= highest {
		o.violated("exclusive token %d of %q is not above %d", h.Token(), h.Key(), highest)
	}
	k.exclusive = max(k.exclusive, h.Token())
}

// Ending takes a handle out.
func (o *Oracle) Ending(h Hold) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if k := o.keys[h.Key()]; k != nil {
		delete(k.holds, h)
	}
}

// Stats returns what was seen so far.
func (o *Oracle) Stats() OracleStats {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.stats
	s.Violations = append([]string(nil), s.Violations...)
	return s
}

func (o *Oracle) violated(format string, args ...any) {
	if len(o.stats.Violations) < maxViolations {
		o.stats.Violations = append(o.stats.Violations, fmt.Sprintf(format, args...))
	}
}

func describe(holds ...Hold) string {
	all := make([]string, len(holds))
	for i, h := range holds {
		all[i] = fmt.Sprintf("%s %s with token %d", h.ID(), h.Mode(), h.Token())
	}
	return strings.Join(all, " beside ")
}

// leaseOf returns the lease in an operation id, "<lease>.<sequence>".
func leaseOf(id string) string {
	for i := len(id) - 1; i >= 0; i-- {
		if id[i] == '.' {
			return id[:i]
		}
	}
	return id
}

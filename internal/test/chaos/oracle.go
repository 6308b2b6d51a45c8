package chaos

import (
	"fmt"
	"strings"
	"sync"

	"github.com/lockfabric/lockfabric/fabric"
)

// Hold is what the oracle needs from a handle. *fabric.Lock implements it.
type Hold interface {
	Key() string
	ID() string
	Mode() fabric.Mode
	Token() uint64
	Grant() (token, use uint64)
	Err() error
}

// Oracle checks holds against each other at the moment of every grant. It is
// safe for concurrent use.
type Oracle struct {
	// TokensOnly turns the check of overlaps off, for scenarios in which an operator removes
	// holds at once: then only the tokens are guaranteed, and two holders can show
	// theirs in any order. Set it before use.
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

// heldKey is what the oracle knows about one key.
type heldKey struct {
	holds     map[Hold]struct{}
	exclusive uint64 // highest token
	use       uint64 // of it, the highest
	shared    uint64
	by        string // lease of the last grant
	tokens    map[uint64]given
}

// given says how a token was last granted.
type given struct {
	mode fabric.Mode
	use  uint64
}

// Mark is the highest tokens that were shown before an acquire was called. The acquire's
// token is newer.
type Mark struct{ exclusive, use, shared uint64 }

// Mark returns the mark of a key.
func (o *Oracle) Mark(key string) Mark {
	o.mu.Lock()
	defer o.mu.Unlock()
	if k := o.keys[key]; k != nil {
		return Mark{exclusive: k.exclusive, use: k.use, shared: k.shared}
	}
	return Mark{}
}

// maxViolations bounds how many violations are kept. The first ones say most.
const maxViolations = 20

// Granted shows a fresh handle to the oracle, with the mark from before the call
// that returned it, and reports whether it was valid then. The caller calls Ending before it releases the handle, and after it
// found it lost.
func (o *Oracle) Granted(h Hold, before Mark) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.keys == nil {
		o.keys = make(map[string]*heldKey)
	}
	k := o.keys[h.Key()]
	if k == nil {
		k = &heldKey{holds: make(map[Hold]struct{}), tokens: make(map[uint64]given)}
		o.keys[h.Key()] = k
	}
	// Ask the new handle first: another one that is valid afterwards was valid at the same time.
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
	if !o.TokensOnly {
		before = Mark{exclusive: k.exclusive, use: k.use, shared: k.shared} // there is no other holder
	}
	o.checkToken(k, h, before)
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

func (o *Oracle) checkToken(k *heldKey, h Hold, before Mark) {
	token, use := h.Grant()
	exclusive := h.Mode() == fabric.Exclusive
	again := exclusive && token == before.exclusive && use > before.use // of a lock that is kept
	if exclusive {
		o.stats.Exclusive++
		before.exclusive = max(before.exclusive, before.shared)
		if token > k.exclusive {
			k.exclusive, k.use = token, 0
		}
		if token == k.exclusive {
			k.use = max(k.use, use)
		}
	} else {
		o.stats.Shared++
		k.shared = max(k.shared, token)
	}
	if token <= before.exclusive && !again {
		o.violated("%s token %d of %q is not above %d", h.Mode(), token, h.Key(), before.exclusive)
	}
	// Shared holds may have the same token. So may successive users of a kept lock. All others may not.
	other, used := k.tokens[token]
	handedOn := exclusive && other.mode == fabric.Exclusive && use > other.use
	if used && !handedOn && (exclusive || other.mode == fabric.Exclusive) {
		o.violated("%s token %d of %q was given out before", h.Mode(), token, h.Key())
	}
	k.tokens[token] = given{h.Mode(), use}
}

// Ending removes a handle.
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

package record

import "strings"

// The metadata of an entry that its process may hold without using it: an intent that paths share, or a lock that is
// kept. Other processes can ask for such an entry.
const (
	IntentKey    = "intent"
	SharedIntent = "shared"
	KeptIntent   = "kept"
)

// MayBeKept reports whether an entry with this metadata may be kept by its process.
func MayBeKept(meta map[string]string) bool { return meta[IntentKey] == KeptIntent }

// HasQueue reports whether the record, which may be nil, has waiters.
func (r *Record) HasQueue() bool { return r != nil && len(r.Waiters) > 0 }

// OnlyHolder returns the holder if there is exactly one, else nil. The record may be nil.
func (r *Record) OnlyHolder() *Entry {
	if r == nil || len(r.Holders) != 1 {
		return nil
	}
	return &r.Holders[0]
}

// HasOthers reports whether the record, which may be nil, has entries of other leases.
func (r *Record) HasOthers(lease string) bool {
	if r == nil {
		return false
	}
	for _, list := range [][]Entry{r.Holders, r.Waiters} {
		for i := range list {
			if id := list[i].ID; len(id) <= len(lease) || id[len(lease)] != '.' || !strings.HasPrefix(id, lease) {
				return true
			}
		}
	}
	return false
}

// CanPassOn reports whether an entry may be passed on within its process: it holds, with this token, and by the record,
// which may be nil, nobody else wants the lock.
func (r *Record) CanPassOn(id string, token uint64) bool {
	if r == nil || r.HasQueue() {
		return false
	}
	e, ok := r.Holder(id)
	return ok && e.Token == token && !e.Revoked && e.Convert.ID == ""
}

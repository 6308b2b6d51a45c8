package record

import "strings"

// What the metadata of an entry says that its process may hold without using it, so that others ask for it: an intent
// that paths share, or a lock that is kept.
const (
	IntentKey    = "intent"
	SharedIntent = "shared"
	KeptIntent   = "kept"
)

// MayBeKept reports whether an entry with this metadata may be kept by its process.
func MayBeKept(meta map[string]string) bool { return meta[IntentKey] == KeptIntent }

// Awaited reports whether anybody waits in the record, which may be nil.
func (r *Record) Awaited() bool { return r != nil && len(r.Waiters) > 0 }

// Sole returns the only holder, if there is one alone; the record may be nil.
func (r *Record) Sole() *Entry {
	if r == nil || len(r.Holders) != 1 {
		return nil
	}
	return &r.Holders[0]
}

// HasOthers reports whether entries of other leases stand in the record, which may be nil.
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

// Passable reports whether an entry may be passed on within its process: it holds, with this token, and nobody else
// wants the lock, as far as the record says, which may be nil.
func (r *Record) Passable(id string, token uint64) bool {
	if r == nil || r.Awaited() {
		return false
	}
	e, ok := r.Holder(id)
	return ok && e.Token == token && !e.Revoked && e.Convert.ID == ""
}

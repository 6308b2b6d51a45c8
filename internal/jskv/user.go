package jskv

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/kv"
)

// headerUpdate lists the last updates of a key, the message's own first, as "id@base": base is the
// revision that the update replaced. So an update that got no answer can be found below later ones.
const headerUpdate = "Lockfabric-Update"

// maxListed is how many updates a message lists.
const maxListed = 8

// ErrUnsuitable says that a bucket isn't one in which values can be updated safely.
var ErrUnsuitable = errors.New("kv: unsuitable bucket")

var bucketName = regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)

// UserBucket is a KV bucket of the user's whose values are updated by compare-and-set.
type UserBucket struct {
	b       *Bucket
	forgets bool // delete markers expire: revision 0 comes back
}

// OpenUser looks at a bucket that exists. Errors: ErrUnsuitable; kv.ErrUnavailable when nobody answers, or
// the credentials don't allow it.
func OpenUser(ctx context.Context, nc *nats.Conn, trip RoundTripper, name string) (*UserBucket, error) {
	if !bucketName.MatchString(name) {
		return nil, fmt.Errorf("%w: %q is no name of one", ErrUnsuitable, name)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", kv.ErrUnavailable, err)
	}
	s, err := insist(ctx, nil, func(ctx context.Context) (jetstream.Stream, error) { return js.Stream(ctx, streamName(name)) })
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("%w: %s does not exist", ErrUnsuitable, name)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: bucket %s: %w", kv.ErrUnavailable, name, err)
	}
	cfg := s.CachedInfo().Config
	switch {
	case cfg.Metadata[metaIncarnation] != "" || cfg.Metadata[metaSchema] != "":
		return nil, fmt.Errorf("%w: %s has the locks' own records", ErrUnsuitable, name)
	case cfg.Mirror != nil:
		return nil, fmt.Errorf("%w: %s is a mirror: use the bucket that it mirrors", ErrUnsuitable, name)
	case cfg.MaxAge > 0:
		return nil, fmt.Errorf("%w: the values of %s expire (max age %v)", ErrUnsuitable, name, cfg.MaxAge)
	case cfg.Discard != jetstream.DiscardNew && (cfg.MaxBytes > 0 || cfg.MaxMsgs > 0):
		return nil, fmt.Errorf("%w: %s drops its oldest values when it is full", ErrUnsuitable, name)
	}
	return &UserBucket{b: newBucket(nc, js, nil, name, trip), forgets: cfg.AllowMsgTTL}, nil
}

// UserEntry is the state of a user's key.
type UserEntry struct {
	Value    []byte // nil if there is none
	Revision uint64
	updates  []listed
}

// listed is an update that a message lists.
type listed struct {
	id   string
	base uint64 // what it replaced
	rev  uint64 // what it made
}

// Get reads the key from the stream's leader. Errors are those of [Bucket.Get], and kv.ErrRejected for what is no key.
func (u *UserBucket) Get(ctx context.Context, key string) (UserEntry, error) {
	if !validKey(key) {
		return UserEntry{}, fmt.Errorf("%w: %q is no key", kv.ErrRejected, key)
	}
	e, header, err := u.b.get(ctx, key)
	if err != nil {
		return UserEntry{}, err
	}
	if e.Value == nil && !e.Deleted {
		e.Value = []byte{}
	}
	return UserEntry{Value: e.Value, Revision: e.Revision, updates: parseListed(header, e.Revision)}, nil
}

// parseListed reads the list of a stored message's header block. What makes no sense ends it.
func parseListed(header []byte, rev uint64) (all []listed) {
	h, err := nats.DecodeHeadersMsg(header)
	if err != nil {
		return nil
	}
	for f := range strings.FieldsSeq(h.Get(headerUpdate)) {
		id, text, ok := strings.Cut(f, "@")
		base, err := strconv.ParseUint(text, 10, 64)
		if !ok || id == "" || err != nil || base >= rev {
			break
		}
		all = append(all, listed{id, base, rev})
		rev = base
	}
	return all[:min(len(all), maxListed)]
}

// Replace writes value over what was read, as the update id. Errors are those of [Bucket.Update]. But for kv.ErrRejected of the first
// attempt, and ErrNotSent without ErrConnectionClosed, every error leaves it open whether it was or will be written, also ErrConflict
// and ErrBusy, which can come from a deposed leader: see [UserBucket.Outcome].
func (u *UserBucket) Replace(ctx context.Context, key string, value []byte, id string, over UserEntry) (uint64, error) {
	list := make([]string, 1, maxListed)
	list[0] = id + "@" + strconv.FormatUint(over.Revision, 10)
	for _, l := range over.updates[:min(len(over.updates), maxListed-1)] {
		list = append(list, l.id+"@"+strconv.FormatUint(l.base, 10))
	}
	return u.b.publish(ctx, key, value, over.Revision, nats.Header{
		headerExpectedRevision: {strconv.FormatUint(over.Revision, 10)},
		headerUpdate:           {strings.Join(list, " ")},
	})
}

// Outcome is what a later read says of an update.
type Outcome int

// The outcomes.
const (
	UpdateOpen   Outcome = iota // it may still be written: repeating it can't write it twice
	UpdateDone                  // it was written
	UpdateBeaten                // another update replaced what it was to replace: it never will be written
	UpdateHidden                // it can't be found out: somebody else wrote, or 8 updates since
)

// Outcome says, by an entry that was read after Replace, what became of the update id of revision base, and the
// revision that it made.
func (u *UserBucket) Outcome(now UserEntry, id string, base uint64) (o Outcome, rev uint64) {
	i := slices.IndexFunc(now.updates, func(l listed) bool { return l.base == base })
	switch {
	case i >= 0 && now.updates[i].id == id:
		return UpdateDone, now.updates[i].rev
	case base == 0 && u.forgets:
		return UpdateHidden, 0 // it may have been written, and have vanished
	case i >= 0:
		return UpdateBeaten, 0
	case now.Revision <= base:
		return UpdateOpen, 0
	}
	return UpdateHidden, 0
}

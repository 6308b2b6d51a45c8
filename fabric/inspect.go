package fabric

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lockfabric/lockfabric/internal/engine"
	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/internal/record"
	"github.com/lockfabric/lockfabric/kv"
)

// Info is the state of one name at one revision. Fields that its kind does not have are zero.
type Info struct {
	Key      string `json:"key"`
	Kind     string `json:"kind"`     // one of the Kind constants; "" if nothing is stored; in a list also "unreadable" and "newer"
	Revision uint64 `json:"revision"` // of the record or its delete marker; 0 = never used, or not for a long time
	// HoldTime is how long a hold of this lock lasts while others want it, smoothed; 0 = unknown.
	HoldTime time.Duration `json:"hold_time_ns,omitempty"`
	Holders  []Party       `json:"holders"`
	Waiters  []Party       `json:"waiters"` // in queue order

	// Life distinguishes this record from earlier records of the same name.
	Life uint64 `json:"-"`
	// Claim is the id of the claim, in the result of Await.
	Claim string `json:"-"`
	// Of a semaphore: the permits, how many are in use, the number with which it was created (of a latch, the initial
	// count), and the revision that set Size.
	Size    int    `json:"size,omitempty"`
	Taken   int    `json:"taken,omitempty"`
	Initial int    `json:"initial,omitempty"`
	Sized   uint64 `json:"sized,omitempty"`
	// Of a barrier: the parties and how many have arrived, the generation, whether an action is running, and the ends.
	Parties    int     `json:"parties,omitempty"`
	Arrived    int     `json:"arrived,omitempty"`
	Generation uint64  `json:"generation,omitempty"`
	Acting     bool    `json:"acting,omitempty"`
	Ended      []Ended `json:"ended,omitempty"`
	// Of a latch: the count, and when marks of dead leases were last removed. Open is also for a full double barrier.
	Count  int    `json:"count,omitempty"`
	Fenced uint64 `json:"fenced,omitempty"`
	Open   bool   `json:"open,omitempty"`
	// Value is the leader's value, or a result. If it is not text, it is in Data.
	Value *string `json:"value,omitempty"`
	Data  []byte  `json:"data,omitempty"`
	By    string  `json:"by,omitempty"` // the id that stored the result
	// Retention is how long a result stays at least; 0 = until it is deleted.
	Retention time.Duration `json:"retention_ns,omitempty"`
	// Conditions are the conditions of a lock that have waiters.
	Conditions []Condition `json:"conditions,omitempty"`
}

// Ended tells how one generation of a barrier ended.
type Ended struct {
	Generation uint64   `json:"generation"`
	IDs        []string `json:"ids"` // in the order of arrival
	Broken     bool     `json:"broken,omitempty"`
	Why        string   `json:"why,omitempty"`
	Who        string   `json:"who,omitempty"`
}

// Condition is one condition of a lock.
type Condition struct {
	Name    string  `json:"name"`
	Waiters []Party `json:"waiters"` // in order
}

// Bytes returns the value, text or not, and nil if there is none.
func (i *Info) Bytes() []byte { return bytesOf(i.Value, i.Data) }

func bytesOf(text *string, data []byte) []byte {
	if text != nil {
		return []byte(*text)
	}
	return data
}

// textOrData returns the value in the form that JSON can represent.
func textOrData(v record.Value) (text *string, data []byte) {
	switch {
	case !v.Set:
	case utf8.ValidString(v.Data):
		text = &v.Data
	default:
		data = []byte(v.Data)
	}
	return text, data
}

// Party is a holder or waiter.
type Party struct {
	ID     string `json:"id"`                      // "<lease>.<sequence>"
	Owner  string `json:"owner"`                   // explicit owner, or the id
	Mode   Mode   `json:"mode,omitempty"`          // for locks
	Token  uint64 `json:"token,omitempty,string"`  // fencing token of a holder
	Queued uint64 `json:"queued,omitempty,string"` // ticket of a waiter, which becomes its token
	// Converting is the mode to which a holder waits to be converted, or "".
	Converting Mode      `json:"converting,omitempty"`
	Since      time.Time `json:"since"` // time of the request, by its own clock
	// ExpectedWait is the expected remaining wait of a waiter: the turns before it, times HoldTime; 0 = unknown.
	ExpectedWait time.Duration     `json:"expected_wait_ns,omitempty"`
	Revoked      bool              `json:"revoked,omitempty"`
	Metadata     map[string]string `json:"metadata,omitempty"`
	Permits      int               `json:"permits,omitempty"`    // for semaphores
	Refused      bool              `json:"refused,omitempty"`    // it asks for more permits than exist after a resize
	Generation   uint64            `json:"generation,omitempty"` // for barriers
	Leaving      bool              `json:"leaving,omitempty"`    // for double barriers
	Signalled    string            `json:"signalled,omitempty"`  // the condition whose signal moved it to the queue
	Value        *string           `json:"value,omitempty"`      // of a candidate
	Data         []byte            `json:"data,omitempty"`       // of a candidate, if it is not text
	Lease        Lease             `json:"lease"`
	// Kept is for locks that may be kept: "used"; "idle" if it is released; "unknown" without an answer. See WithKeep.
	Kept string `json:"kept,omitempty"`
	// Own reports whether the entry belongs to the manager that was asked.
	Own bool `json:"-"`
}

// Bytes returns the value, text or not, and nil if there is none.
func (p *Party) Bytes() []byte { return bytesOf(p.Value, p.Data) }

// Lease describes the process behind a holder or waiter.
type Lease struct {
	ID string `json:"id"`
	// State is "live"; "stale" if it was not renewed for its TTL and margin, by the server's time stamp and this host's
	// clock (its process looks dead); "dead" with a tombstone, so that its entries will be evicted; "missing"; or
	// "unknown".
	State   string        `json:"state"`
	TTL     time.Duration `json:"ttl_ns"`
	Renewed time.Time     `json:"renewed,omitzero"` // time of the last renewal, by the server's clock
	Host    string        `json:"host,omitempty"`
	PID     int           `json:"pid,omitempty"`
	Label   string        `json:"label,omitempty"`
}

// Inspect returns who holds the lock and who waits for it, as the stream's leader has it, also if nobody does. Errors:
// ErrInvalidName, ErrMalformedRecord, ErrNewerSchema, ErrUnavailable, ErrClosed, and the context's.
func (m *Manager) Inspect(ctx context.Context, key string) (Info, error) {
	return m.read(ctx, key, true)
}

func (m *Manager) read(ctx context.Context, key string, identify bool) (Info, error) {
	enc, err := kv.EncodeName(key)
	if err != nil {
		return Info{}, err
	}
	return m.readEncoded(ctx, key, enc, identify)
}

func (m *Manager) readEncoded(ctx context.Context, key, enc string, identify bool) (info Info, err error) {
	err = m.inSession(ctx, func(ctx context.Context, s *session) error {
		rec, rev, err := s.shard(enc).engine.Read(ctx, enc)
		if err != nil {
			return err
		}
		if info = newInfo(key, rec, rev); identify {
			s.identify(ctx, []Info{info})
		}
		return nil
	})
	if err != nil {
		return Info{}, fmt.Errorf("inspect %q: %w", key, err)
	}
	return info, nil
}

// List returns every lock in use whose name starts with prefix, in the order of their last changes. Leases contain only
// the id and the TTL; Identify adds the rest. Errors are those of Inspect. An unreadable record has the kind
// "unreadable".
func (m *Manager) List(ctx context.Context, prefix string) ([]Info, error) {
	filter, err := kv.EncodePrefix(prefix)
	if err != nil {
		return nil, err
	}
	var all []Info
	collect := func(e jskv.Entry) bool {
		if name, err := kv.DecodeKey(e.Key); err == nil && strings.HasPrefix(name, prefix) {
			all = append(all, entryInfo(name, e))
		}
		return true
	}
	err = m.inSession(ctx, func(ctx context.Context, s *session) error {
		for _, sh := range s.shards {
			if err := sh.bucket.Entries(ctx, filter, collect); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list %q: %w", prefix, err)
	}
	return newest(all), nil
}

// Identify fills in the processes behind a list, with one read for each lease. A lease that can't be read stays as it is.
// Errors: ErrUnavailable, ErrClosed, and the context's.
func (m *Manager) Identify(ctx context.Context, infos []Info) error {
	return m.inSession(ctx, func(ctx context.Context, s *session) error {
		s.identify(ctx, infos)
		return ctx.Err()
	})
}

// entryInfo returns the Info of a bucket's entry. For an unreadable one, the kind says so.
func entryInfo(key string, e jskv.Entry) Info {
	info := newInfo(key, nil, e.Revision)
	rec, err := record.Decode(e.Value)
	switch {
	case e.Deleted:
	case err == nil:
		rec.Resolve(e.Revision)
		return newInfo(key, rec, e.Revision)
	case errors.Is(err, record.ErrNewerSchema):
		info.Kind = "newer"
	default:
		info.Kind = "unreadable"
	}
	return info
}

func newInfo(key string, rec *record.Record, rev uint64) Info {
	info := Info{Key: key, Revision: rev, Holders: []Party{}, Waiters: []Party{}}
	if rec == nil {
		info.Life = rev // the revision over which the first use will write
		return info
	}
	info.Life = rec.Life
	f := rec.Facts()
	info.Size, info.Taken, info.Initial, info.Sized = f.Size, f.Taken, f.Initial, f.Sized
	info.Parties, info.Arrived, info.Generation, info.Acting = f.Parties, f.Arrived, f.Gen, f.Acting
	info.Count, info.Fenced, info.Open, info.By, info.Retention = f.Count, f.Fenced, f.Open, f.By, f.Retention
	info.Value, info.Data = textOrData(f.Value)
	for _, e := range f.Ended {
		info.Ended = append(info.Ended, Ended{Generation: e.Gen, IDs: e.IDs, Broken: e.Broken, Why: e.Why, Who: e.Who})
	}
	for _, q := range f.Queues {
		c := Condition{Name: q.Name}
		for _, e := range q.Waiters {
			c.Waiters = append(c.Waiters, newParty(e))
		}
		info.Conditions = append(info.Conditions, c)
	}
	info.Kind = string(rec.Kind)
	info.HoldTime = rec.Hold
	for _, e := range rec.Holders {
		p := newParty(e)
		p.Token, p.Queued = e.Token, 0
		info.Holders = append(info.Holders, p)
	}
	for i, e := range rec.Waiters {
		p := newParty(e)
		p.ExpectedWait = rec.ExpectedWait(i)
		info.Waiters = append(info.Waiters, p)
	}
	return info
}

// newParty returns the Party of a waiter.
func newParty(e record.Entry) Party {
	p := Party{
		ID: e.ID, Owner: e.OwnerID(), Mode: modeOf(e.Mode), Queued: e.Token, Since: e.Since, Revoked: e.Revoked,
		Permits: e.Permits, Refused: e.Refused, Generation: e.Gen, Leaving: e.Leaving > 0, Signalled: e.Signalled,
		Metadata: maps.Clone(e.Meta), Lease: Lease{ID: e.Lease(), State: "unknown", TTL: e.TTL},
	}
	p.Value, p.Data = textOrData(e.Value)
	if e.Convert.ID != "" {
		p.Converting = Mode(e.Convert.Mode.String())
	}
	return p
}

// lookUps limits how many leases are read at the same time.
const lookUps = 16

// identify fills in the processes behind the leases that can be read, with one read for each. It reads several at the
// same time, because a long queue has many leases, and a read on a slow link takes long.
func (s *session) identify(ctx context.Context, infos []Info) {
	byLease := map[string][]*Party{}
	for _, info := range infos {
		lists := [][]Party{info.Holders, info.Waiters}
		for _, c := range info.Conditions {
			lists = append(lists, c.Waiters)
		}
		for _, list := range lists {
			for i := range list {
				id := list[i].Lease.ID
				byLease[id] = append(byLease[id], &list[i])
			}
		}
	}
	forEach(ctx, lookUps, slices.Collect(maps.Values(byLease)), func(parties []*Party) {
		le := s.lookUp(ctx, parties[0].Lease)
		for _, p := range parties {
			p.Lease, p.Own = le, s.leaseShareOf(le.ID) != nil
		}
		s.askKeptUse(ctx, parties)
	})
}

func (s *session) lookUp(ctx context.Context, le Lease) Lease {
	ctx, cancel := context.WithTimeout(ctx, s.m.rtt.Patience()) // an answer can get lost
	defer cancel()
	e, err := s.buckets.Leases.Get(ctx, le.ID)
	if err != nil {
		return le
	}
	if e.Deleted {
		le.State = "missing"
		return le
	}
	who, err := lease.Decode(le.ID, e.Value)
	switch {
	case err != nil:
		return le
	case who.Dead:
		le.State = "dead"
	case time.Since(e.Created) > who.TTL+who.Margin:
		le.State, le.Renewed = "stale", e.Created
	default:
		le.State, le.Renewed = "live", e.Created
	}
	le.Host, le.PID, le.Label = who.Host, who.PID, who.Label
	return le
}

// ForceOption configures ForceRelease.
type ForceOption func(*force)

type force struct {
	now    bool
	holder string
}

// ForceNow removes the holds at once, without waiting for their holders, which learn of it within a second. Until then,
// only the fencing token stops their writes.
func ForceNow() ForceOption { return func(f *force) { f.now = true } }

// ForceHolder limits the release to the hold with this id.
func ForceHolder(id string) ForceOption { return func(f *force) { f.holder = id } }

// ForceRelease takes the lock away from its present holders. It returns how many holders the record shows. Each holder
// is notified, invalidates its handle and releases the lock. The next waiter is granted only then, or when the holder's
// lease is found dead. This includes a holder by a turn that the record does not show yet. A hold that was already
// released, and reappeared with a restored stream, is released by its process. Holders that are granted during the call
// are not affected. Errors are those of Inspect, and ErrKindMismatch.
func (m *Manager) ForceRelease(ctx context.Context, key string, opts ...ForceOption) (int, error) {
	var f force
	for _, o := range opts {
		o(&f)
	}
	enc, err := kv.EncodeName(key)
	if err != nil {
		return 0, err
	}
	if f.holder != "" && record.LeaseOf(f.holder) == "" {
		return 0, fmt.Errorf("%w: holder id %q: take it from Inspect", ErrInvalidOption, f.holder)
	}
	n := 0
	err = m.inSession(ctx, func(ctx context.Context, s *session) (err error) {
		n, err = s.forceRelease(ctx, enc, f)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("force release of %q: %w", key, err)
	}
	if n > 0 {
		m.cfg.logger.Warn("lock taken away by force", "key", key, "holders", n, "now", f.now)
	}
	return n, nil
}

func (s *session) forceRelease(ctx context.Context, enc string, f force) (int, error) {
	rec, _, err := s.shard(enc).engine.Read(ctx, enc)
	if err != nil || rec == nil {
		return 0, err
	}
	holders := slices.DeleteFunc(slices.Clone(rec.Holders), func(h record.Entry) bool { return f.holder != "" && h.ID != f.holder })
	if e, _, _ := rec.Waiter(f.holder); !f.now && rec.MayHold(f.holder) {
		holders = append(holders, e)
	}
	if len(holders) == 0 {
		return 0, nil
	}
	op := record.Op{Verb: record.OpRevoke, ID: f.holder, UpTo: rec.NewestHold()}
	if f.now {
		op.Verb = record.OpRemove
	}
	_, err = engine.Do(ctx, s.shard(enc).engine, enc, op, engine.Options{})
	var refused *engine.RefusedError
	switch {
	case errors.As(err, &refused):
		return 0, ErrKindMismatch
	case err != nil:
		return 0, err
	}
	if !f.now {
		// Their watches notify them, except of a hold that reappeared; see cleanUpOrphans.
		others := map[string][]string{}
		for _, h := range holders {
			others[h.Lease()] = []string{enc}
		}
		s.cleanUpOrphans(ctx, []string{enc}, others)
	}
	return len(holders), nil
}

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

// Info is what is known of one name at one revision. Fields that its kind doesn't have are zero.
type Info struct {
	Key      string `json:"key"`
	Kind     string `json:"kind"`     // KindLock and its like; "" when nothing is stored, in a list also "unreadable" and "newer"
	Revision uint64 `json:"revision"` // of the record or its delete marker; 0 = never used, or long ago
	// HoldTime is how long a hold of this lock lasts, smoothed over those that were
	// released while others waited or held; 0 = not known.
	HoldTime time.Duration `json:"hold_time_ns,omitempty"`
	Holders  []Party       `json:"holders"`
	Waiters  []Party       `json:"waiters"` // in queue order, the next one first

	// Life tells this record from those that stood under its name before.
	Life uint64 `json:"-"`
	// Claim is the id of what was waited for, in what Await returns.
	Claim string `json:"-"`
	// Of a semaphore: how many permits there are, how many of them are out, how many it
	// was made with, which is a latch's initial count, and the revision that set Size.
	Size    int    `json:"size,omitempty"`
	Taken   int    `json:"taken,omitempty"`
	Initial int    `json:"initial,omitempty"`
	Sized   uint64 `json:"sized,omitempty"`
	// Of a barrier: how many have to come and how many have, for which generation,
	// whether an action runs, and how the last generations ended.
	Parties    int     `json:"parties,omitempty"`
	Arrived    int     `json:"arrived,omitempty"`
	Generation uint64  `json:"generation,omitempty"`
	Acting     bool    `json:"acting,omitempty"`
	Ended      []Ended `json:"ended,omitempty"`
	// Of a latch: the count, and the revision at which marks of dead leases went last.
	// Open is that of a latch at 0, and of a double barrier that all are in.
	Count  int    `json:"count,omitempty"`
	Fenced uint64 `json:"fenced,omitempty"`
	Open   bool   `json:"open,omitempty"`
	// Value is the leader's, or a result; as Data where it is not text.
	Value *string `json:"value,omitempty"`
	Data  []byte  `json:"data,omitempty"`
	By    string  `json:"by,omitempty"` // the id that gave the result
	// Retention is how long a result stays at least; 0 = until it is deleted.
	Retention time.Duration `json:"retention_ns,omitempty"`
	// Conditions are those of a lock that somebody waits for.
	Conditions []Condition `json:"conditions,omitempty"`
}

// Ended is how one generation of a barrier ended.
type Ended struct {
	Generation uint64   `json:"generation"`
	IDs        []string `json:"ids"` // in the order they came
	Broken     bool     `json:"broken,omitempty"`
	Why        string   `json:"why,omitempty"`
	Who        string   `json:"who,omitempty"`
}

// Condition is one condition of a lock.
type Condition struct {
	Name    string  `json:"name"`
	Waiters []Party `json:"waiters"` // the next one first
}

// Bytes is the value, whether text or not; nil if there is none.
func (i *Info) Bytes() []byte { return bytesOf(i.Value, i.Data) }

func bytesOf(text *string, data []byte) []byte {
	if text != nil {
		return []byte(*text)
	}
	return data
}

// textOrData splits a value into the form that JSON can show.
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

// Party is one holder or waiter.
type Party struct {
	ID     string `json:"id"`                      // "<lease>.<sequence>"
	Owner  string `json:"owner"`                   // explicit owner, or the id
	Mode   Mode   `json:"mode,omitempty"`          // of a lock
	Token  uint64 `json:"token,omitempty,string"`  // a holder's fencing token
	Queued uint64 `json:"queued,omitempty,string"` // a waiter's ticket, which is its token when it is granted
	// Converting is the mode to which a holder waits to be converted, if it does.
	Converting Mode      `json:"converting,omitempty"`
	Since      time.Time `json:"since"` // when it asked, by its own clock
	// ExpectedWait is how long a waiter is expected to wait from now: its turns, those
	// who are granted together being one, times the HoldTime; 0 = not known.
	ExpectedWait time.Duration     `json:"expected_wait_ns,omitempty"`
	Revoked      bool              `json:"revoked,omitempty"`
	Metadata     map[string]string `json:"metadata,omitempty"`
	Permits      int               `json:"permits,omitempty"`    // of a semaphore
	Refused      bool              `json:"refused,omitempty"`    // asks for more permits than there are since a resize
	Generation   uint64            `json:"generation,omitempty"` // of a barrier
	Leaving      bool              `json:"leaving,omitempty"`    // of a double barrier
	Signalled    string            `json:"signalled,omitempty"`  // the condition that sent it to the queue
	Value        *string           `json:"value,omitempty"`      // a candidate's
	Data         []byte            `json:"data,omitempty"`       // likewise, where it is not text
	Lease        Lease             `json:"lease"`
	// Kept is, of a lock that its process may keep, whether it is "used", or "idle": released, and kept unused; "unknown"
	// where its process does not answer. See WithKeep.
	Kept string `json:"kept,omitempty"`
	// Own says that the entry is of the manager that was asked.
	Own bool `json:"-"`
}

// Bytes is the value, whether text or not; nil if there is none.
func (p *Party) Bytes() []byte { return bytesOf(p.Value, p.Data) }

// Lease is what is known of the process behind a party.
type Lease struct {
	ID string `json:"id"`
	// State is live; stale, when it was not renewed for longer than its TTL and margin,
	// by the server's time stamp and this host's clock: its process looks dead; dead,
	// when that is decided and its entries are about to be evicted; missing; or unknown.
	State   string        `json:"state"`
	TTL     time.Duration `json:"ttl_ns"`
	Renewed time.Time     `json:"renewed,omitzero"` // when it was renewed last, by the server's clock
	Host    string        `json:"host,omitempty"`
	PID     int           `json:"pid,omitempty"`
	Label   string        `json:"label,omitempty"`
}

// Inspect tells who holds the lock and who waits for it, as the stream's leader
// has it. A lock that nobody uses is not an error. Errors: ErrInvalidName,
// ErrMalformedRecord, ErrNewerSchema, ErrUnavailable, ErrClosed, and the context's.
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

// List tells of every lock in use whose name starts with prefix, in the order of their last changes. The processes
// behind holders are not looked up: their leases carry the id and the TTL only; Identify adds the rest. Errors are
// those of Inspect; a record that can't be read is listed with the kind "unreadable".
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

// Identify fills in who is behind the holders and waiters of a list, with one read for each lease. What can't be read
// stays as it is. Errors: ErrUnavailable, ErrClosed, and the context's.
func (m *Manager) Identify(ctx context.Context, infos []Info) error {
	return m.inSession(ctx, func(ctx context.Context, s *session) error {
		s.identify(ctx, infos)
		return ctx.Err()
	})
}

// entryInfo is what an entry tells. One that can't be read has a kind that says so.
func entryInfo(key string, e jskv.Entry) Info {
	if e.Deleted {
		return newInfo(key, nil, e.Revision)
	}
	rec, err := record.Decode(e.Value)
	switch {
	case err == nil:
		rec.Resolve(e.Revision)
		return newInfo(key, rec, e.Revision)
	case errors.Is(err, record.ErrNewerSchema):
		return Info{Key: key, Kind: "newer", Revision: e.Revision, Holders: []Party{}, Waiters: []Party{}}
	}
	return Info{Key: key, Kind: "unreadable", Revision: e.Revision, Holders: []Party{}, Waiters: []Party{}}
}

func newInfo(key string, rec *record.Record, rev uint64) Info {
	info := Info{Key: key, Revision: rev, Holders: []Party{}, Waiters: []Party{}}
	if rec == nil {
		info.Life = rev // what a first use will be made over
		return info
	}
	info.Life = rec.Life
	info.fill(rec.Facts())
	info.Kind = string(rec.Kind)
	info.HoldTime = rec.Hold
	for _, e := range rec.Holders {
		p := newParty(e)
		p.Token = e.Token
		info.Holders = append(info.Holders, p)
	}
	for i, e := range rec.Waiters {
		p := newWaiter(e)
		p.ExpectedWait = rec.ExpectedWait(i)
		info.Waiters = append(info.Waiters, p)
	}
	return info
}

func (i *Info) fill(f record.Facts) {
	i.Size, i.Taken, i.Initial, i.Sized = f.Size, f.Taken, f.Initial, f.Sized
	i.Parties, i.Arrived, i.Generation, i.Acting = f.Parties, f.Arrived, f.Gen, f.Acting
	i.Count, i.Fenced, i.Open, i.By, i.Retention = f.Count, f.Fenced, f.Open, f.By, f.Retention
	i.Value, i.Data = textOrData(f.Value)
	for _, e := range f.Ended {
		i.Ended = append(i.Ended, Ended{Generation: e.Gen, IDs: e.IDs, Broken: e.Broken, Why: e.Why, Who: e.Who})
	}
	for _, q := range f.Queues {
		c := Condition{Name: q.Name}
		for _, e := range q.Waiters {
			c.Waiters = append(c.Waiters, newWaiter(e))
		}
		i.Conditions = append(i.Conditions, c)
	}
}

func newWaiter(e record.Entry) Party {
	p := newParty(e)
	p.Queued = e.Token
	return p
}

func newParty(e record.Entry) Party {
	p := Party{
		ID: e.ID, Owner: e.OwnerID(), Mode: modeOf(e.Mode), Since: e.Since, Revoked: e.Revoked,
		Permits: e.Permits, Refused: e.Refused, Generation: e.Gen, Leaving: e.Leaving > 0, Signalled: e.Signalled,
		Metadata: maps.Clone(e.Meta), Lease: Lease{ID: e.Lease(), State: "unknown", TTL: e.TTL},
	}
	p.Value, p.Data = textOrData(e.Value)
	if e.Convert.ID != "" {
		p.Converting = Mode(e.Convert.Mode.String())
	}
	return p
}

// lookUps bounds the leases that are read at a time.
const lookUps = 16

// identify fills in who is behind the leases, one read for each, as far as they can be read. Several are read at a
// time: behind a long queue stand many, and a read on a slow link takes long.
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
		_, own := s.liveLeases.Load(le.ID)
		for _, p := range parties {
			p.Lease, p.Own = le, own
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
	if err != nil {
		return le
	}
	switch {
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

// ForceNow removes the holds at once instead of waiting until their holders let go. The holders learn it within a
// second; until then only the fencing token keeps their late writes out.
func ForceNow() ForceOption { return func(f *force) { f.now = true } }

// ForceHolder limits the release to the hold with this id.
func ForceHolder(id string) ForceOption { return func(f *force) { f.holder = id } }

// ForceRelease takes the lock away from those who hold it now and returns how many, as the record shows it. Each holder
// is told, invalidates its handle and lets go; the next waiter is granted only then, or when the holder's lease is found
// dead. If a holder has passed the lock on by a turn, which the record does not show yet, the one that holds by a turn
// is told. A hold that its process has released already, and that came back with a restored stream, is released by that
// process. Whoever is granted meanwhile is not touched. Errors are those of Inspect, and ErrKindMismatch.
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
		// Their watches tell them, but not of a hold that came back: see ownUp.
		others := map[string][]string{}
		for _, h := range holders {
			others[h.Lease()] = []string{enc}
		}
		s.cleanUpOrphans(ctx, []string{enc}, others)
	}
	return len(holders), nil
}

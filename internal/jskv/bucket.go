package jskv

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/kv"
)

// MarkerTTL is how long the marker of a deleted key stays before the server collects it. A marker makes a late write
// with an old revision fail, so it must outlive every request that can still be under way.
const MarkerTTL = 15 * time.Minute

// Error codes of the JetStream API that decide an outcome. nats.go maps both conflict
// codes to the same errors, so this package tells them apart.
const (
	codeWrongLastSequence     = 10071 // its text has the actual sequence
	codeWrongLastSequenceBusy = 10164
	codeStreamNotFound        = 10059
	codeMessageTooLarge       = 10054
	codeHeaderTooLarge        = 10097
	codeStoreFailed           = 10077
	codeStorageExceeded       = 10047
	codeMemoryExceeded        = 10028
	codeAccountExceeded       = 10002
)

const (
	headerExpectedRevision = "Nats-Expected-Last-Subject-Sequence"
	headerTTL              = "Nats-TTL"
	headerRollup           = "Nats-Rollup"
	headerOperation        = "KV-Operation"
	headerMarkerReason     = "Nats-Marker-Reason"
)

// Entry is the state of one key.
type Entry struct {
	Key      string
	Value    []byte
	Revision uint64
	Created  time.Time // the server's wall clock
	// Deleted is true for a key without a value. Revision is then the delete
	// marker's, or 0 if the key was never written or its marker has expired.
	Deleted bool
}

// Requester sends a request and waits for its reply, as (*nats.Conn).RequestMsgWithContext does. Tests replace it
// to lose, delay and repeat messages.
type Requester func(ctx context.Context, msg *nats.Msg) (*nats.Msg, error)

// Bucket is one KV bucket of the fabric. It is safe for concurrent use.
type Bucket struct {
	nc      *nats.Conn
	js      jetstream.JetStream
	kv      jetstream.KeyValue
	name    string
	stream  string
	prefix  string // subject prefix of the keys, with its final dot
	getAPI  string // subject of the leader read
	request Requester
	link    *link

	incarnation string                    // of the stream, from its metadata at Open
	shards      int                       // of its fabric, at Open
	last        uint64                    // revision up to which all certainly belong to this bucket
	wasEmpty    bool                      // at Open, nothing had been written
	atomic      bool                      // it accepts batches
	batches     bool                      // and is replicated, so batches are faster than single writes
	group       atomic.Pointer[committer] // nil: each write is sent alone

	noBatches atomic.Int64 // no batch before this time, in Unix nanoseconds
}

// Incarnation returns the id that tells the bucket from earlier buckets of the same name.
func (b *Bucket) Incarnation() string { return b.incarnation }

// Last returns a revision up to which all certainly belong to this bucket, as of its opening; see [Buckets.Verify].
func (b *Bucket) Last() uint64 { return b.last }

// readOverhead is the size of a leader's answer to a read without the value.
const readOverhead = 1 << 10

// MaxValue returns the size of the largest value that fits the connection at present. It can be written, and
// the leader's answer to a read of it, in base64, fits as well. A leaf node that gets a larger answer closes its link.
func (b *Bucket) MaxValue() int { return int(b.nc.MaxPayload()-readOverhead) / 4 * 3 }

// Get reads the key's latest entry from the stream's leader. Absence is not an error: see [Entry]. Every error is
// kv.ErrUnavailable or ErrBucketGone, wraps its cause, and means that nothing is known.
func (b *Bucket) Get(ctx context.Context, key string) (Entry, error) {
	e, _, err := b.get(ctx, key)
	return e, err
}

// get is Get, with the message's header block.
func (b *Bucket) get(ctx context.Context, key string) (_ Entry, header []byte, err error) {
	req := &nats.Msg{Subject: b.getAPI, Data: append(append([]byte(`{"last_by_subj":"`+b.prefix), key...), `"}`...)}
	reply, err := b.request(ctx, req)
	if err != nil {
		return Entry{}, nil, fmt.Errorf("%w: read of %s: %w", kv.ErrUnavailable, key, err)
	}
	if seq, header, value, at, ok := scanRead(reply.Data); ok {
		return entryOf(key, seq, header, value, at), header, nil
	}
	var resp struct {
		Error   *jetstream.APIError `json:"error"`
		Message *struct {
			Sequence uint64    `json:"seq"`
			Header   []byte    `json:"hdrs"`
			Data     []byte    `json:"data"`
			Time     time.Time `json:"time"`
		} `json:"message"`
	}
	switch err := b.answerError(json.Unmarshal(reply.Data, &resp), resp.Error); {
	case resp.Error != nil && resp.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return Entry{Key: key, Deleted: true}, nil, nil
	case err != nil:
		return Entry{}, nil, fmt.Errorf("%w: read of %s", err, key)
	case resp.Message == nil:
		return Entry{}, nil, fmt.Errorf("%w: read of %s: empty answer", kv.ErrUnavailable, key)
	}
	m := resp.Message
	return entryOf(key, m.Sequence, m.Header, m.Data, m.Time), m.Header, nil
}

// answerError returns the error for a JetStream answer that could not be read, or that is a refusal.
func (b *Bucket) answerError(unreadable error, refused *jetstream.APIError) error {
	switch {
	case unreadable != nil:
		return fmt.Errorf("%w: %w", kv.ErrUnavailable, unreadable)
	case refused != nil && refused.ErrorCode == codeStreamNotFound:
		return fmt.Errorf("%w: %s", ErrBucketGone, b.name)
	case refused != nil:
		return fmt.Errorf("%w: %w", kv.ErrUnavailable, refused)
	}
	return nil
}

func entryOf(key string, seq uint64, header, value []byte, at time.Time) Entry {
	if isMarker(header) {
		return Entry{Key: key, Revision: seq, Created: at, Deleted: true}
	}
	return Entry{Key: key, Value: value, Revision: seq, Created: at}
}

// isMarker reports whether a stored message's header block is that of a delete
// marker, written by a client or by the server.
func isMarker(header []byte) bool {
	return bytes.Contains(header, []byte("\r\n"+headerOperation+":")) ||
		bytes.Contains(header, []byte("\r\n"+headerMarkerReason+":"))
}

// Update writes value if the key's revision is rev (0 = the key does not exist), and returns the new revision. With a ttl
// above 0 (whole seconds, at least one) the server deletes the value later; use it only for garbage.
// After an error the write may be committed or not; see the package comment.
func (b *Bucket) Update(ctx context.Context, key string, value []byte, rev uint64, ttl time.Duration) (uint64, error) {
	if ttl > 0 {
		m := newMessage()
		m.Header[headerTTL] = []string{ttlSeconds(ttl)}
		return b.write(ctx, m, nil, key, value, rev)
	}
	return b.write(ctx, updates.Get().(*message), &updates, key, value, rev)
}

// Purge deletes the key if its revision is rev. It leaves a marker that lives for markerTTL, and returns the marker's
// revision. The marker is a PURGE: when a DEL with a TTL expires, the server rolls the key up without a
// revision check, which can erase a later write.
func (b *Bucket) Purge(ctx context.Context, key string, rev uint64, markerTTL time.Duration) (uint64, error) {
	if markerTTL != MarkerTTL {
		return b.write(ctx, newPurge(markerTTL), nil, key, nil, rev)
	}
	return b.write(ctx, purges.Get().(*message), &purges, key, nil, rev)
}

// message is a write with its header. Making one costs about as much as sending it, so a message
// is reused after its answer. A message without an answer may still be sent.
type message struct {
	nats.Msg
	revision [1]string // the expected one, used by the header
}

var (
	updates = sync.Pool{New: func() any { return newMessage() }}
	purges  = sync.Pool{New: func() any { return newPurge(MarkerTTL) }}
)

func newMessage() *message {
	m := new(message)
	m.Header = nats.Header{headerExpectedRevision: m.revision[:]}
	return m
}

func newPurge(markerTTL time.Duration) *message {
	m := newMessage()
	m.Header[headerOperation], m.Header[headerRollup] = []string{"PURGE"}, []string{"sub"}
	m.Header[headerTTL] = []string{ttlSeconds(markerTTL)}
	return m
}

func ttlSeconds(d time.Duration) string {
	s := int64((d + time.Second - 1) / time.Second)
	return strconv.FormatInt(max(s, 1), 10) + "s"
}

// write sends m. m goes back into pool, if there is one, when it was answered and was never in a batch.
func (b *Bucket) write(ctx context.Context, m *message, pool *sync.Pool, key string, value []byte, rev uint64) (newRev uint64, err error) {
	m.Subject, m.Data, m.revision[0] = b.prefix+key, value, strconv.FormatUint(rev, 10)
	alone := true
	member, set := ctx.Value(memberKey{}).(*Member)
	group := b.group.Load()
	switch {
	case member != nil && member.comes(&m.Msg, key, rev):
		return member.write(ctx)
	case group != nil && !set:
		newRev, alone, err = group.write(ctx, &m.Msg, key, rev)
	default:
		newRev, err = b.single(ctx, &m.Msg, key, rev)
	}
	if alone && err == nil && pool != nil {
		m.Data = nil
		pool.Put(m)
	}
	return newRev, err
}

func (b *Bucket) single(ctx context.Context, msg *nats.Msg, key string, rev uint64) (uint64, error) {
	reply, err := b.request(ctx, msg)
	if err != nil {
		return 0, publishError(err)
	}
	return b.parseAck(reply.Data, key, rev)
}

// publishError classifies an error of the request itself.
func publishError(err error) error {
	switch {
	case errors.Is(err, nats.ErrNoResponders),
		errors.Is(err, nats.ErrReconnectBufExceeded),
		errors.Is(err, nats.ErrConnectionClosed),
		errors.Is(err, nats.ErrConnectionDraining):
		return fmt.Errorf("%w: %w", ErrNotSent, err)
	case errors.Is(err, nats.ErrMaxPayload), errors.Is(err, nats.ErrBadSubject), errors.Is(err, nats.ErrInvalidMsg):
		return fmt.Errorf("%w: %w", kv.ErrRejected, err)
	}
	return fmt.Errorf("%w: %w", ErrUnknown, err)
}

// Unwritable reports whether err, of a write through any KV bucket, says that this key or value can never be written.
func Unwritable(err error) bool {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		return api.ErrorCode == codeMessageTooLarge || api.ErrorCode == codeHeaderTooLarge
	}
	return errors.Is(err, jetstream.ErrInvalidKey) || errors.Is(publishError(err), kv.ErrRejected)
}

// parseAck reads a publish acknowledgement. It scans the common form by hand, because every operation needs it.
func (b *Bucket) parseAck(data []byte, key string, rev uint64) (uint64, error) {
	if !bytes.Contains(data, []byte(`"error"`)) {
		if _, rest, ok := bytes.Cut(data, []byte(`"seq":`)); ok {
			n := uint64(0)
			i := 0
			for ; i < len(rest) && rest[i] >= '0' && rest[i] <= '9'; i++ {
				n = n*10 + uint64(rest[i]-'0')
			}
			if i > 0 && n > rev {
				return n, nil
			}
		}
	}
	var ack struct {
		Error *jetstream.APIError `json:"error"`
		Seq   uint64              `json:"seq"`
	}
	if err := json.Unmarshal(data, &ack); err != nil {
		return 0, fmt.Errorf("%w: unreadable acknowledgement: %w", ErrUnknown, err)
	}
	if ack.Error == nil {
		if ack.Seq > rev {
			return ack.Seq, nil
		}
		return 0, fmt.Errorf("%w: acknowledged revision %d is not above %d", ErrUnknown, ack.Seq, rev)
	}
	switch ack.Error.ErrorCode {
	case codeWrongLastSequence:
		text := ack.Error.Description // "wrong last sequence: 42"
		actual, err := strconv.ParseUint(text[strings.LastIndexByte(text, ' ')+1:], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%w: conflict without a revision: %w", ErrBusy, ack.Error)
		}
		return 0, &ConflictError{Key: key, Expected: rev, Actual: actual}
	case codeWrongLastSequenceBusy:
		return 0, fmt.Errorf("%w: %w", ErrBusy, ack.Error)
	case codeMessageTooLarge, codeHeaderTooLarge:
		return 0, fmt.Errorf("%w: %w", kv.ErrRejected, ack.Error)
	case codeStoreFailed, codeStorageExceeded, codeMemoryExceeded, codeAccountExceeded:
		return 0, fmt.Errorf("%w: %w: %w", ErrUnknown, kv.ErrFull, ack.Error)
	}
	return 0, fmt.Errorf("%w: %w", ErrUnknown, ack.Error)
}

// listQuiet is how long a list waits for the next entry before it requests the rest
// again; the time doubles with each attempt. The consumer may have died with its server.
const listQuiet = time.Second

// Entries calls fn for the latest entry of every existing key that matches the KV filter, in revision order, until fn
// returns false. It is a snapshot by watcher: a key that is written meanwhile may be missing, or come again with its
// newer entry. Requests without an answer are repeated until ctx ends. Errors: kv.ErrUnavailable.
func (b *Bucket) Entries(ctx context.Context, filter string, fn func(Entry) bool) error {
	last := uint64(0) // newest revision given to fn
	begun := time.Now()
	for quiet := listQuiet; ; quiet = min(2*quiet, 8*time.Second) {
		end := time.Now().Add(quiet)
		err := b.follow(ctx, filter, quiet, func(entries []Entry, complete bool) (more bool) {
			for _, e := range entries {
				if e.Deleted || e.Revision <= last {
					continue
				}
				last = e.Revision
				if !fn(e) {
					return false
				}
			}
			return !complete
		})
		if err == nil {
			return nil
		}
		again := unanswered(err) || errors.Is(err, errSilent) || b.link.starting(begun) && errors.Is(err, nats.ErrNoResponders)
		if !again || ctx.Err() != nil || !pause.For(ctx, time.Until(end)) { // an early error must not make this spin
			return fmt.Errorf("%w: list of %s: %w", kv.ErrUnavailable, b.name, errors.Join(err, ctx.Err()))
		}
	}
}

// Follow calls fn with the latest entry of every key that matches the KV filter, delete markers too, and then with
// every change, until ctx ends or fn returns an error, which Follow then returns. Entries that came together are
// passed together. complete is false while first values are still to come, and true from the call with the last
// of them on; that call may have no entries.
//
// It is only as good as one KV watcher, see group: a replica may be behind, and after the
// loss of the consumer nothing comes for up to 20 s. A caller that must not miss changes for longer
// starts again after that time. Errors: kv.ErrUnavailable, and the context's.
func (b *Bucket) Follow(ctx context.Context, filter string, fn func(entries []Entry, complete bool) error) (err error) {
	failed := b.follow(ctx, filter, initGrace, func(entries []Entry, complete bool) (more bool) {
		err = fn(entries, complete)
		return err == nil
	})
	switch {
	case failed == nil:
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return fmt.Errorf("%w: changes of %s: %w", kv.ErrUnavailable, b.name, failed)
}

// errSilent says that the first values of a watcher stopped coming.
var errSilent = errors.New("the first values do not come")

// follow is Follow until fn returns false. It gives up if no first value comes for quiet.
func (b *Bucket) follow(ctx context.Context, filter string, quiet time.Duration, fn func(entries []Entry, complete bool) (more bool)) error {
	wctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(quiet, func() { cancel(errSilent) })
	defer silence.Stop()
	w, err := b.kv.Watch(wctx, filter)
	if err != nil {
		if wctx.Err() != nil {
			err = context.Cause(wctx)
		}
		return err
	}
	defer func() { _ = w.Stop() }()
	complete := false
	for {
		select {
		case <-wctx.Done():
			return context.Cause(wctx)
		case e, ok := <-w.Updates():
			if !ok {
				return errors.New("watcher closed")
			}
			if !complete {
				silence.Reset(quiet)
			}
			var batch []Entry
			for ok {
				if e == nil {
					complete = true
					silence.Stop()
				} else {
					batch = append(batch, newEntry(e))
				}
				select {
				case e, ok = <-w.Updates(): // the select above sees again that it was closed
				default:
					ok = false
				}
			}
			if !fn(batch, complete) {
				return nil
			}
		}
	}
}

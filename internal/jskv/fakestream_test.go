package jskv

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// fakeStream stands in for a bucket's stream, so that the hub's decisions can
// be tested in a bubble, on its clock, with faults that no server makes to order.
type fakeStream struct {
	jetstream.KeyValue // nil: the hub calls nothing but WatchFiltered

	mu       sync.Mutex
	revision uint64
	entries  map[string]Entry
	watchers map[*fakeWatcher]struct{}
	created  time.Time
	most     int                      // watchers open at a time
	opened   int                      // watchers opened in all
	reads    int                      // reads answered
	looks    int                      // requests for the state answered
	readErr  error                    // answers every read
	openErr  error                    // answers every WatchFiltered
	onRead   func(key string)         // called after a read has looked, before it is answered
	inFlight int                      // entries that a watcher still delivers after Stop has returned
	hidden   func(key string) bool    // keys of which new watchers get no first value
	stale    func(key string) []Entry // first values instead of the present one
}

func newFakeStream() *fakeStream {
	return &fakeStream{entries: make(map[string]Entry), watchers: make(map[*fakeWatcher]struct{})}
}

// hub runs a hub on the stream until the test ends. In a bubble, so must be.
func (s *fakeStream) hub(t *testing.T, opts ...HubOption) *Hub {
	t.Helper()
	h := newHub(&Bucket{nc: &nats.Conn{}, kv: s, name: "fake", stream: "KV_fake", request: s.read}, opts...)
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	h.run(ctx)
	t.Cleanup(func() {
		h.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.watchers) > 0 {
			t.Errorf("%d watchers left open", len(s.watchers))
		}
	})
	return h
}

// put writes a value and tells the watchers.
func (s *fakeStream) put(key, value string) uint64 { return s.write(key, value, true) }

// putSilently writes a value that no open watcher delivers.
func (s *fakeStream) putSilently(key, value string) uint64 { return s.write(key, value, false) }

func (s *fakeStream) write(key, value string, tell bool) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	e := Entry{Key: key, Value: []byte(value), Revision: s.revision}
	s.entries[key] = e
	if tell {
		s.tell(e)
	}
	return s.revision
}

// vanish removes a key as the expiry of its marker does: without a message.
func (s *fakeStream) vanish(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.entries, key)
}

// tell delivers an entry, which may be an old one, to the watchers. Lock held.
func (s *fakeStream) tell(e Entry) {
	for w := range s.watchers {
		if w.sees(e.Key) {
			w.updates <- fakeEntry{Entry: e}
		}
	}
}

// replay delivers any entry to the watchers.
func (s *fakeStream) replay(e Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell(e)
}

// end closes all watchers, as nats.go does when a consumer can't be made again.
func (s *fakeStream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watchers {
		s.close(w)
	}
}

func (s *fakeStream) close(w *fakeWatcher) {
	if _, open := s.watchers[w]; open {
		delete(s.watchers, w)
		close(w.updates)
	}
}

func (s *fakeStream) set(change func(s *fakeStream)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *fakeStream) get(look func(s *fakeStream) int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return look(s)
}

func (s *fakeStream) read(_ context.Context, msg *nats.Msg) (*nats.Msg, error) {
	if strings.HasPrefix(msg.Subject, apiStreamInfo) {
		return s.info()
	}
	var req struct {
		Key string `json:"last_by_subj"`
	}
	if err := json.Unmarshal(msg.Data, &req); err != nil {
		return nil, err
	}
	s.mu.Lock()
	e, ok := s.entries[req.Key]
	err, onRead := s.readErr, s.onRead
	s.reads++
	s.mu.Unlock()
	if onRead != nil {
		onRead(req.Key)
	}
	answer := map[string]any{"message": map[string]any{"seq": e.Revision, "data": e.Value, "time": e.Created}}
	var apiErr *jetstream.APIError
	switch {
	case errors.As(err, &apiErr):
		answer = map[string]any{"error": apiErr}
	case err != nil:
		return nil, err
	case !ok:
		answer = map[string]any{"error": &jetstream.APIError{Code: 404, ErrorCode: jetstream.JSErrCodeMessageNotFound}}
	}
	data, err := json.Marshal(answer)
	return &nats.Msg{Data: data}, err
}

func (s *fakeStream) info() (*nats.Msg, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looks++
	answer := map[string]any{"created": s.created, "state": map[string]any{"messages": len(s.entries), "last_seq": s.revision}}
	var apiErr *jetstream.APIError
	switch {
	case errors.As(s.readErr, &apiErr):
		answer = map[string]any{"error": apiErr}
	case s.readErr != nil:
		return nil, s.readErr
	}
	data, err := json.Marshal(answer)
	return &nats.Msg{Data: data}, err
}

// openTime is what opening a watcher takes.
const openTime = time.Millisecond

// WatchFiltered opens a watcher that first delivers the present entries.
func (s *fakeStream) WatchFiltered(_ context.Context, keys []string, _ ...jetstream.WatchOpt) (jetstream.KeyWatcher, error) {
	w := &fakeWatcher{stream: s, filters: slices.Clone(keys)}
	clear(keys) // nats.go writes into its argument too
	time.Sleep(openTime)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.openErr != nil {
		return nil, s.openErr
	}
	first := []jetstream.KeyValueEntry{}
	for key, e := range s.entries {
		switch {
		case !w.sees(key) || s.hidden != nil && s.hidden(key):
		case s.stale != nil && s.stale(key) != nil:
			for _, e := range s.stale(key) {
				first = append(first, fakeEntry{Entry: e})
			}
		default:
			first = append(first, fakeEntry{Entry: e})
		}
	}
	w.updates = make(chan jetstream.KeyValueEntry, len(first)+1000)
	for _, e := range first {
		w.updates <- e
	}
	w.updates <- nil
	s.watchers[w] = struct{}{}
	s.most = max(s.most, len(s.watchers))
	s.opened++
	return w, nil
}

type fakeWatcher struct {
	stream  *fakeStream
	filters []string
	updates chan jetstream.KeyValueEntry
}

func (w *fakeWatcher) sees(key string) bool {
	return slices.Contains(w.filters, jetstream.AllKeys) || slices.Contains(w.filters, key)
}

func (w *fakeWatcher) Updates() <-chan jetstream.KeyValueEntry { return w.updates }

func (w *fakeWatcher) Stop() error {
	w.stream.mu.Lock()
	defer w.stream.mu.Unlock()
	if _, open := w.stream.watchers[w]; !open || w.stream.inFlight == 0 {
		w.stream.close(w)
		return nil
	}
	delete(w.stream.watchers, w)
	n := w.stream.inFlight
	go func() {
		for range n {
			w.updates <- fakeEntry{}
		}
		close(w.updates)
	}()
	return nil
}

type fakeEntry struct{ Entry }

func (e fakeEntry) Bucket() string     { return "fake" }
func (e fakeEntry) Key() string        { return e.Entry.Key }
func (e fakeEntry) Value() []byte      { return e.Entry.Value }
func (e fakeEntry) Revision() uint64   { return e.Entry.Revision }
func (e fakeEntry) Created() time.Time { return e.Entry.Created }
func (e fakeEntry) Delta() uint64      { return 0 }

func (e fakeEntry) Operation() jetstream.KeyValueOp {
	if e.Deleted {
		return jetstream.KeyValuePurge
	}
	return jetstream.KeyValuePut
}

// journal records what one registration was told.
type journal struct {
	mu      sync.Mutex
	entries []Entry
}

func (j *journal) add(e Entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = append(j.entries, e)
}

// String is for example "a absent b": what was delivered, in order.
func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	words := make([]string, 0, len(j.entries))
	for _, e := range j.entries {
		switch {
		case e.Revision == 0 && e.Deleted:
			words = append(words, "absent")
		case e.Deleted:
			words = append(words, "deleted")
		default:
			words = append(words, string(e.Value))
		}
	}
	return strings.Join(words, " ")
}

func (j *journal) want(t *testing.T, want string) {
	t.Helper()
	if got := j.String(); got != want {
		t.Errorf("delivered %q, want %q", got, want)
	}
}

package ui

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/pause"
)

const (
	// maxStreams limits the number of open pages, because each needs a consumer of the locks bucket.
	maxStreams = 32
	// gather is how long changes are collected before they are written.
	gather = 100 * time.Millisecond
	// chunk is how many rows are written at once.
	chunk = 500
	// lookEvery is the interval and time limit of checks of the server; leases are looked up again as often.
	lookEvery = 5 * time.Second
	// writeTime is the time limit for writing one event to a page.
	writeTime = 30 * time.Second
	// probe is a name that nobody uses. Reading it shows that the leader answers.
	probe = "lockfabric-ui"
)

// stream is one open page.
type stream struct {
	s    *server
	w    http.ResponseWriter
	wake chan struct{}

	mu      sync.Mutex
	rows    map[string]row      // the last state of each name in use
	changed map[string]struct{} // names that must be written
	begun   bool                // the first list has arrived
	ended   error               // the reason of the end, nil before

	told    bool // the first list was written to the page
	trouble string
	people  people
}

// events serves the stream of one page.
func (s *server) events(w http.ResponseWriter, r *http.Request) {
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		refuse(w, http.StatusServiceUnavailable, "too many pages are open")
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // for proxies
	st := &stream{s: s, w: w, wake: make(chan struct{}, 1), rows: map[string]row{}, changed: map[string]struct{}{}}
	st.people = people{known: map[string]*person{}}
	ctx, cancel := context.WithCancel(r.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { st.follow(ctx) })
	err := st.send("hello", struct {
		Fabric  string    `json:"fabric"`
		Now     time.Time `json:"now"`
		Release bool      `json:"release"`
	}{s.cfg.Fabric, time.Now(), s.cfg.AllowRelease})
	if err == nil {
		_ = st.run(ctx, &wg)
	}
}

// follow collects changes until ctx ends or WatchAll ends.
func (st *stream) follow(ctx context.Context) {
	for infos, err := range st.s.locks.WatchAll(ctx, "") {
		st.mu.Lock()
		for _, info := range infos {
			if info.Kind == "" {
				delete(st.rows, info.Key)
			} else {
				st.rows[info.Key] = newRow(info, st.s.cfg.State(info))
			}
			st.changed[info.Key] = struct{}{}
		}
		st.begun, st.ended = true, err
		st.mu.Unlock()
		pause.Wake(st.wake)
	}
}

// run writes until ctx ends, the page is gone, or there is nothing more to report.
func (st *stream) run(ctx context.Context, wg *sync.WaitGroup) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	looked := make(chan string, 1) // the problem that the check found
	looking := false
	seen := make(chan map[string]fabric.Lease, 1)
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-st.wake:
			err = st.flush()
			pause.For(ctx, gather) // changes in this time are written together
		case <-look.C:
			if !looking {
				looking = true
				wg.Go(func() { looked <- st.look(ctx) })
			}
			err = st.send("", nil) // this also prevents proxies from closing the stream
			st.people.due = true
		case trouble := <-looked:
			looking = false
			err = st.tell(trouble)
		case found := <-seen:
			st.people.looking = false
			err = st.introduce(found)
		}
		if err != nil {
			return err
		}
		st.mu.Lock()
		ids := st.people.next(st.rows)
		st.mu.Unlock()
		if len(ids) > 0 {
			wg.Go(func() { seen <- st.identify(ctx, ids) })
		}
	}
}

// flush writes the changes, and the reason of the end, which it returns.
func (st *stream) flush() error {
	st.mu.Lock()
	rows, gone := make([]row, 0, len(st.changed)), []string{}
	for key := range st.changed {
		if r, ok := st.rows[key]; ok {
			rows = append(rows, r)
		} else {
			gone = append(gone, key)
		}
	}
	clear(st.changed)
	begun, ended := st.begun, st.ended
	st.mu.Unlock()
	for len(rows) > 0 || len(gone) > 0 {
		n, m := min(len(rows), chunk), min(len(gone), chunk)
		err := st.send("rows", struct {
			Rows []row    `json:"rows"`
			Gone []string `json:"gone"`
		}{rows[:n], gone[:m]})
		if err != nil {
			return err
		}
		rows, gone = rows[n:], gone[m:]
	}
	if begun && !st.told {
		st.told = true
		if err := st.send("ready", struct{}{}); err != nil {
			return err
		}
	}
	if ended != nil {
		_ = st.tell(ended.Error())
	}
	return ended
}

// look returns the problem with the server, or "" if it answers.
func (st *stream) look(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, lookEvery)
	defer cancel()
	if _, err := st.s.locks.Read(ctx, probe); err != nil {
		return err.Error()
	}
	return ""
}

// tell writes a problem, or its end, if it has changed.
func (st *stream) tell(trouble string) error {
	if trouble == st.trouble {
		return nil
	}
	st.trouble = trouble
	return st.send("trouble", struct {
		Text string `json:"text"`
	}{trouble})
}

// send writes one event, or a comment that only keeps the stream alive.
func (st *stream) send(event string, v any) error {
	text := ":\n\n"
	if event != "" {
		data, err := json.Marshal(v) // it contains no line break
		if err != nil {
			return err
		}
		text = fmt.Sprintf("event: %s\ndata: %s\n\n", event, data)
	}
	control := http.NewResponseController(st.w)
	_ = control.SetWriteDeadline(time.Now().Add(writeTime))
	if _, err := st.w.Write([]byte(text)); err != nil {
		return err
	}
	return control.Flush()
}

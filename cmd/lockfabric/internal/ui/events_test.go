package ui

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// event is one that a page got.
type event struct{ name, data string }

// reader is a page that reads its stream.
type reader struct {
	t      *testing.T
	header http.Header
	status int
	events chan event
	leases map[string]fabric.Lease // that it was told of
	done   chan struct{}
}

func (r *reader) Header() http.Header    { return r.header }
func (r *reader) WriteHeader(status int) { r.status = status }
func (r *reader) Flush()                 {}

// Write wants whole events, each of one line for its name and one for its data.
func (r *reader) Write(b []byte) (int, error) {
	text := string(b)
	if text == ":\n\n" || r.status != 0 {
		return len(b), nil
	}
	name, data, _ := strings.Cut(text, "\ndata: ")
	name, ok := strings.CutPrefix(name, "event: ")
	if !ok || strings.ContainsAny(name, "\r\n") || strings.IndexAny(data, "\r\n") != len(data)-2 {
		r.t.Errorf("not one event: %q", text)
	}
	r.events <- event{name, strings.TrimSpace(data)}
	return len(b), nil
}

// open opens a stream; end closes the page.
func open(t *testing.T, h http.Handler) (r *reader, end func()) {
	t.Helper()
	r = &reader{t: t, header: http.Header{}, events: make(chan event, 100), done: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	req := loggedIn(t, h, "GET", "/api/events", "").WithContext(ctx)
	go func() {
		defer close(r.done)
		h.ServeHTTP(r, req)
	}()
	return r, func() { cancel(); <-r.done }
}

// rows returns the next change. What is found out about leases comes when it is known,
// before or after it.
func (r *reader) rows() (c change) {
	r.t.Helper()
	for {
		e := <-r.events
		switch e.name {
		case "leases":
			r.introduced(e)
			continue
		case "rows":
			if err := json.Unmarshal([]byte(e.data), &c); err != nil {
				r.t.Fatal(err)
			}
			return c
		}
		r.t.Fatalf("got %s, want rows: %s", e.name, e.data)
	}
}

// knows waits until the page has been told of a lease.
func (r *reader) knows(id string) fabric.Lease {
	r.t.Helper()
	for r.leases[id].ID == "" {
		e := <-r.events
		if e.name != "leases" {
			r.t.Fatalf("got %s, want leases: %s", e.name, e.data)
		}
		r.introduced(e)
	}
	return r.leases[id]
}

func (r *reader) introduced(e event) {
	r.t.Helper()
	if err := json.Unmarshal([]byte(e.data), &r.leases); err != nil {
		r.t.Fatal(err)
	}
}

// next returns the data of the next event.
func next[T any](r *reader, name string) T {
	r.t.Helper()
	e := <-r.events
	var v T
	if e.name != name {
		r.t.Fatalf("got %s, want %s: %s", e.name, name, e.data)
	}
	if err := json.Unmarshal([]byte(e.data), &v); err != nil {
		r.t.Fatal(err)
	}
	return v
}

type change struct {
	Rows []row    `json:"rows"`
	Gone []string `json:"gone"`
}

func held(key, lease string) fabric.Info {
	return fabric.Info{Key: key, Kind: fabric.KindLock, Holders: []fabric.Party{{
		ID: lease + ".1", Owner: lease + ".1", Mode: fabric.Exclusive, Token: 7, Lease: fabric.Lease{ID: lease},
	}}, Waiters: []fabric.Party{}}
}

func TestStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLocks{lists: make(chan []fabric.Info)}
		h := handler(f, Config{AllowRelease: true})
		r, end := open(t, h)
		defer end()
		if hello := next[map[string]any](r, "hello"); hello["fabric"] != "the fabric" || hello["release"] != true {
			t.Errorf("hello: %v", hello)
		}
		if got := r.header.Get("Content-Type"); got != "text/event-stream" {
			t.Errorf("content type %s", got)
		}
		// All that is in use, then that these were all.
		hostile := "</script>\n<img src=x onerror=alert(1)>\r\ndata: x\u2028\u202e"
		var first []fabric.Info
		for i := range chunk {
			first = append(first, held(fmt.Sprint("k/", i), "one lease"))
		}
		f.lists <- append(first, held(hostile, "another"))
		got := map[string]row{}
		for _, n := range []int{chunk, 1} {
			c := r.rows()
			if len(c.Rows) != n || len(c.Gone) > 0 {
				t.Errorf("%d rows, %q", len(c.Rows), c.Gone)
			}
			for _, one := range c.Rows {
				got[one.Key] = one
			}
		}
		next[struct{}](r, "ready")
		if one := got[hostile]; len(got) != chunk+1 || one.State != "state of "+hostile || one.Holders[0].Token != 7 || one.Holders[0].Lease != "another" || one.Holders[0].Owner != "" {
			t.Errorf("row %+v", one)
		}
		// Each lease once.
		if l := r.knows("another"); l.Host != "host of another" || r.knows("one lease").Host == "" || f.identified != 2 {
			t.Errorf("%+v, %d looked up", l, f.identified)
		}
		f.lists <- []fabric.Info{held("k/1", "third"), {Key: hostile}}
		if c := r.rows(); len(c.Rows) != 1 || c.Rows[0].Holders[0].Lease != "third" || len(c.Gone) != 1 || c.Gone[0] != hostile {
			t.Errorf("changed: %+v", c)
		}
		r.knows("third")
		// Changes of one name that come together are one.
		synctest.Wait()
		for i := range 10 {
			f.lists <- []fabric.Info{held("k/2", fmt.Sprint("fast ", i))}
		}
		changes := 0
		for last := ""; last != "fast 9"; changes++ {
			c := r.rows()
			if len(c.Rows) != 1 {
				t.Fatalf("%+v", c)
			}
			last = c.Rows[0].Holders[0].Lease
		}
		if changes > 3 {
			t.Errorf("changes that came together were told in %d pieces", changes)
		}
	})
}

// The page learns that nobody answers, and when somebody does again.
func TestStreamTellsTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeLocks{lists: make(chan []fabric.Info), over: errors.New("the end of it")}
		r, end := open(t, handler(f, Config{}))
		defer end()
		next[struct{}](r, "hello")
		f.lists <- nil
		next[struct{}](r, "ready")
		trouble := func(want string) {
			t.Helper()
			if got := next[map[string]string](r, "trouble")["text"]; got != want {
				t.Errorf("trouble %q, want %q", got, want)
			}
		}
		f.fail(errors.New("nobody answers"))
		trouble("nobody answers")
		time.Sleep(5 * lookEvery) // said once
		f.fail(nil)
		trouble("")
		// What can't go on says why, and ends.
		close(f.lists)
		trouble("the end of it")
		<-r.done
	})
}

func TestStreamsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := handler(&fakeLocks{lists: make(chan []fabric.Info)}, Config{})
		var ends []func()
		for range maxStreams {
			r, end := open(t, h)
			next[struct{}](r, "hello")
			ends = append(ends, end)
		}
		r, end := open(t, h)
		<-r.done
		end()
		if r.status != http.StatusServiceUnavailable {
			t.Errorf("one too many: %d", r.status)
		}
		ends[0]()
		r, end = open(t, h)
		next[struct{}](r, "hello")
		end()
		for _, end := range ends {
			end()
		}
	})
}

// A long queue is cut before its leases are looked up.
func TestDetails(t *testing.T) {
	info := held("", "a lease")
	info.Holders[0].Metadata = map[string]string{"<b>": "</dd>"}
	for i := range 10 * maxParties {
		info.Waiters = append(info.Waiters, fabric.Party{ID: fmt.Sprint("w.", i)})
	}
	f := &fakeLocks{info: info}
	h := handler(f, Config{})
	var d details
	body := expect(t, "details", do(h, loggedIn(t, h, "GET", "/api/key?name=a%2Fb%3C%26", "")), 200)
	if err := json.Unmarshal([]byte(body), &d); err != nil {
		t.Fatal(err)
	}
	if d.Key != "a/b<&" || d.Waiting != 10*maxParties || len(d.Waiters) != maxParties || f.identified != maxParties+1 || d.Holders[0].Lease.Host == "" || d.State != "state of a/b<&" {
		t.Errorf("%d of %d waiters, %d looked up, %+v", len(d.Waiters), d.Waiting, f.identified, d.Holders)
	}
	if strings.ContainsAny(body, "<>&") {
		t.Error("JSON with characters in it that HTML knows")
	}
	f.fail(fabric.ErrUnavailable)
	expect(t, "nobody answers", do(h, loggedIn(t, h, "GET", "/api/key?name=k", "")), http.StatusServiceUnavailable)
}

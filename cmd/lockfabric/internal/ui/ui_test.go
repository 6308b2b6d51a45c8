package ui

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/lockfabric/lockfabric/fabric"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "a-token-of-the-tests-that-is-long"

// fakeLocks are locks without a fabric.
type fakeLocks struct {
	lists chan []fabric.Info // told by WatchAll, which ends with over when it is closed
	over  error

	mu         sync.Mutex
	info       fabric.Info // what Read tells
	err        error       // of Read, Identify and ForceRelease
	identified int         // leases that were asked for
	released   []string
	waits      fabric.Waits
	looks      int // at waits
	coalescer  fabric.Info
}

func (f *fakeLocks) Waits(context.Context) (fabric.Waits, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks++
	return f.waits, f.err
}

func (f *fakeLocks) Coalescer(context.Context) (fabric.Info, error) { return f.coalescer, nil }

func (f *fakeLocks) WatchAll(ctx context.Context, _ string) iter.Seq2[[]fabric.Info, error] {
	return func(yield func([]fabric.Info, error) bool) {
		if f.lists == nil {
			yield(nil, errors.New("nothing to tell"))
			return
		}
		for {
			select {
			case <-ctx.Done():
				yield(nil, ctx.Err())
				return
			case list, ok := <-f.lists:
				if !ok {
					yield(nil, f.over)
					return
				}
				if !yield(list, nil) {
					return
				}
			}
		}
	}
}

func (f *fakeLocks) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fakeLocks) Read(_ context.Context, key string) (fabric.Info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	info := f.info
	info.Key = key
	return info, f.err
}

func (f *fakeLocks) Identify(_ context.Context, infos []fabric.Info) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, i := range infos {
		for _, list := range [][]fabric.Party{i.Holders, i.Waiters} {
			for n := range list {
				f.identified++
				list[n].Lease.Host, list[n].Lease.State = "host of "+list[n].Lease.ID, "live"
			}
		}
	}
	return f.err
}

func (f *fakeLocks) ForceRelease(_ context.Context, key string, opts ...fabric.ForceOption) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.released = append(f.released, fmt.Sprintf("%s %d", key, len(opts)))
	return 1, f.err
}

func handler(f *fakeLocks, cfg Config) http.Handler {
	cfg.Fabric, cfg.Token = "the fabric", token
	cfg.State = func(i fabric.Info) string { return "state of " + i.Key }
	return New(f, cfg)
}

// request is one that the page itself could make.
func request(method, path, body string) *http.Request {
	r := httptest.NewRequest(method, "http://localhost:4280"+path, strings.NewReader(body))
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/json")
	}
	return r
}

func do(h http.Handler, r *http.Request) *http.Response {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

// cookie logs in.
func cookie(t *testing.T, h http.Handler) *http.Cookie {
	t.Helper()
	resp := do(h, request("POST", "/api/login", `{"token":"`+token+`"}`))
	if resp.StatusCode != http.StatusNoContent || len(resp.Cookies()) != 1 {
		t.Fatalf("login: %s", resp.Status)
	}
	return resp.Cookies()[0]
}

func loggedIn(t *testing.T, h http.Handler, method, path, body string) *http.Request {
	t.Helper()
	r := request(method, path, body)
	r.AddCookie(cookie(t, h))
	return r
}

func expect(t *testing.T, what string, resp *http.Response, status int) string {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != status || err != nil {
		t.Errorf("%s: %s, want %d: %s", what, resp.Status, status, body)
	}
	return string(body)
}

func TestNothingWithoutASession(t *testing.T) {
	f := &fakeLocks{}
	h := handler(f, Config{AllowRelease: true})
	wrong := map[string]string{"none": "", "another": strings.Repeat("0", 64), "the token": token}
	for _, path := range []string{"GET /api/session", "GET /api/events", "GET /api/key?name=k", "GET /api/else", "POST /api/release", "POST /api/logout"} {
		for what, value := range wrong {
			method, path, _ := strings.Cut(path, " ")
			r := request(method, path, `{"key":"k","holders":["l.1"]}`)
			if value != "" {
				r.AddCookie(&http.Cookie{Name: cookie(t, h).Name, Value: value})
			}
			expect(t, path+" with a cookie: "+what, do(h, r), http.StatusUnauthorized)
		}
	}
	if len(f.released) > 0 {
		t.Errorf("released %q", f.released)
	}
	expect(t, "with the cookie", do(h, loggedIn(t, h, "GET", "/api/session", "")), http.StatusNoContent)
	for _, given := range []string{"", token[1:], token + "x", strings.ToUpper(token)} {
		resp := do(h, request("POST", "/api/login", `{"token":"`+given+`"}`))
		expect(t, "login with "+given, resp, http.StatusUnauthorized)
		if len(resp.Cookies()) > 0 {
			t.Errorf("login with %q: %v", given, resp.Cookies())
		}
	}
	expect(t, "login without JSON", do(h, request("POST", "/api/login", "token")), http.StatusBadRequest)
	other := New(f, Config{Token: token + token})
	expect(t, "the cookie of another page", do(other, loggedIn(t, h, "GET", "/api/session", "")), http.StatusUnauthorized)
}

func TestCookie(t *testing.T) {
	h := handler(&fakeLocks{}, Config{})
	c := cookie(t, h)
	if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Secure || strings.Contains(c.Value+c.Name, token) {
		t.Errorf("cookie %v", c)
	}
	r := request("POST", "/api/login", `{"token":"`+token+`"}`)
	r = httptest.NewRequest(r.Method, "https://localhost/api/login", r.Body) // sets r.TLS
	r.Header.Set("Content-Type", "application/json")
	if c := do(h, r).Cookies()[0]; !c.Secure {
		t.Errorf("over TLS: %v", c)
	}
	resp := do(h, loggedIn(t, h, "POST", "/api/logout", "{}"))
	expect(t, "logout", resp, http.StatusNoContent)
	if c := resp.Cookies()[0]; c.Value != "" || c.MaxAge >= 0 {
		t.Errorf("after the logout: %v", c)
	}
}

func TestForeignNamesAndOrigins(t *testing.T) {
	h := handler(&fakeLocks{}, Config{Hosts: []string{"locks.example.com"}})
	for host, status := range map[string]int{
		"localhost": 200, "LocalHost:4280": 200, "127.0.0.1:1": 200, "[::1]:4280": 200, "192.0.2.7": 200, "locks.example.com": 200, "Locks.Example.com:443": 200,
		"evil.example": 421, "localhost.evil.example": 421, "127.0.0.1.evil.example:4280": 421, "locks.example.com.evil.example": 421, "": 421, "evil.example:4280": 421,
	} {
		for _, path := range []string{"/", "/app.js", "/api/session"} {
			r := loggedIn(t, h, "GET", path, "")
			r.Host = host
			want := status
			if want == 200 && path == "/api/session" {
				want = 204
			}
			expect(t, path+" of "+host, do(h, r), want)
		}
	}
	for _, c := range []struct {
		method, path, header, value string
		status                      int
	}{
		{"GET", "/api/session", "Sec-Fetch-Site", "same-site", 403},
		{"GET", "/api/events", "Sec-Fetch-Site", "cross-site", 403},
		{"GET", "/", "Sec-Fetch-Site", "cross-site", 200}, // a link to the page
		{"POST", "/api/release", "Sec-Fetch-Site", "cross-site", 403},
		{"POST", "/api/login", "Sec-Fetch-Site", "same-site", 403},
		{"POST", "/api/release", "Content-Type", "text/plain", 415},
		{"POST", "/api/release", "Content-Type", "", 415},
	} {
		r := loggedIn(t, h, c.method, c.path, "{}")
		r.Header.Set(c.header, c.value)
		expect(t, fmt.Sprint(c), do(h, r), c.status)
	}
	// Browsers of before Sec-Fetch-Site.
	r := loggedIn(t, h, "POST", "/api/logout", "{}")
	r.Header.Del("Sec-Fetch-Site")
	r.Header.Set("Origin", "http://localhost:9999")
	expect(t, "from another port's page", do(h, r), http.StatusForbidden)
	r.Header.Set("Origin", "http://localhost:4280")
	expect(t, "from the page", do(h, r), http.StatusNoContent)
}

// The page has only what its policy lets it have, and the policy comes with everything.
func TestPolicy(t *testing.T) {
	h := handler(&fakeLocks{}, Config{})
	for _, path := range []string{"/", "/app.js", "/list.js", "/details.js", "/waits.js", "/text.js", "/style.css", "/icon.svg", "/nowhere", "/api/session", "/../doc.go"} {
		resp := do(h, request("GET", path, ""))
		csp := resp.Header.Get("Content-Security-Policy")
		for _, part := range []string{"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"} {
			if !slices.Contains(strings.Split(csp, "; "), part) {
				t.Errorf("%s: no %s in %q", path, part, csp)
			}
		}
		if strings.Contains(csp, "unsafe") || strings.Contains(csp, "//") || strings.Contains(csp, "data:") || resp.Header.Get("X-Content-Type-Options") != "nosniff" || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v", path, resp.Header)
		}
	}
	index := expect(t, "page", do(h, request("GET", "/", "")), 200)
	for _, m := range regexp.MustCompile(`(?:src|href)="([^"]*)"`).FindAllStringSubmatch(index, -1) {
		expect(t, m[1], do(h, request("GET", "/"+m[1], "")), 200)
	}
	if bad := regexp.MustCompile(`(?i)<style|style="|<script>|\son\w+=|https?://|javascript:`).FindString(index); bad != "" {
		t.Errorf("the page has %q in it", bad)
	}
	for _, name := range []string{"app.js", "list.js", "details.js", "waits.js", "text.js", "style.css"} {
		text := expect(t, name, do(h, request("GET", "/"+name, "")), 200)
		if bad := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|https?://|@import|url\(`).FindString(text); bad != "" {
			t.Errorf("%s has %q in it", name, bad)
		}
	}
}

func TestRelease(t *testing.T) {
	const good = `{"key":"k","holders":["lease.1","lease.2"],"now":true}`
	f := &fakeLocks{}
	closed := handler(f, Config{})
	expect(t, "not allowed", do(closed, loggedIn(t, closed, "POST", "/api/release", good)), http.StatusForbidden)
	h := handler(f, Config{AllowRelease: true})
	for what, body := range map[string]string{
		"nobody named": `{"key":"k"}`, "an empty id": `{"key":"k","holders":["lease.1",""]}`, "no JSON": "k",
		"too many": `{"key":"k","holders":["` + strings.Repeat(`l.1","`, maxParties) + `l.1"]}`, "too long": `{"key":"` + strings.Repeat("k", maxBody) + `"}`,
	} {
		expect(t, what, do(h, loggedIn(t, h, "POST", "/api/release", body)), http.StatusBadRequest)
	}
	if len(f.released) > 0 {
		t.Fatalf("released %q", f.released)
	}
	if got := expect(t, "allowed", do(h, loggedIn(t, h, "POST", "/api/release", good)), 200); got != "{\"released\":2}\n" {
		t.Errorf("answer %q", got)
	}
	// Each call names one holder, and here says now.
	if want := []string{"k 2", "k 2"}; !slices.Equal(f.released, want) {
		t.Errorf("released %q, want %q", f.released, want)
	}
	for err, status := range map[error]int{
		fabric.ErrInvalidName: 400, fabric.ErrKindMismatch: 409, fabric.ErrUnavailable: 503, context.DeadlineExceeded: 503, errors.New("other"): 500,
	} {
		f.fail(fmt.Errorf("told: %w", err))
		if got := expect(t, err.Error(), do(h, loggedIn(t, h, "POST", "/api/release", good)), status); !strings.Contains(got, "told: ") {
			t.Errorf("%v: %s", err, got)
		}
	}
}

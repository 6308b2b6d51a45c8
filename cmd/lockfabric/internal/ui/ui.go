package ui

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"embed"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"iter"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// Locks contains the methods of *fabric.Manager that the page needs.
type Locks interface {
	WatchAll(ctx context.Context, prefix string) iter.Seq2[[]fabric.Info, error]
	Read(ctx context.Context, key string) (fabric.Info, error)
	Identify(ctx context.Context, infos []fabric.Info) error
	Waits(ctx context.Context) (fabric.Waits, error)
	Coalescer(ctx context.Context) (fabric.Info, error)
	ForceRelease(ctx context.Context, key string, opts ...fabric.ForceOption) (int, error)
}

// Config contains the settings of the page.
type Config struct {
	Fabric string
	// Token opens a session. It has at least MinToken characters.
	Token string
	// Hosts are additional host names of the page, besides addresses and localhost.
	Hosts []string
	// AllowRelease allows every session to take locks away.
	AllowRelease bool
	// State describes the state of a name in a few words.
	State func(info fabric.Info) string
}

// MinToken is the minimum number of characters of a token.
const MinToken = 20

// requestTime limits the fabric's part of one request.
const requestTime = 10 * time.Second

//go:embed assets
var assets embed.FS

type server struct {
	cfg     Config
	locks   Locks
	session session
	streams chan struct{} // one element for each open stream
	waiting struct {      // the last reading of waits
		sync.Mutex
		at time.Time
		is graph
	}
}

// New returns the page's handler. Its streams end with their requests' contexts.
func New(locks Locks, cfg Config) http.Handler {
	s := &server{cfg: cfg, locks: locks, session: newSession(cfg.Token), streams: make(chan struct{}, maxStreams)}
	api := http.NewServeMux()
	api.HandleFunc("GET /api/session", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	api.HandleFunc("POST /api/logout", s.logout)
	api.HandleFunc("GET /api/events", s.events)
	api.HandleFunc("GET /api/key", s.key)
	api.HandleFunc("GET /api/waits", s.waits)
	api.HandleFunc("POST /api/release", s.release)
	all := http.NewServeMux()
	all.Handle("/api/", s.authenticated(api))
	all.HandleFunc("POST /api/login", s.login)
	files, err := fs.Sub(assets, "assets")
	names, rerr := assets.ReadDir("assets")
	if err := cmp.Or(err, rerr); err != nil {
		panic(err) // the files are embedded
	}
	all.Handle("GET /{$}", http.FileServerFS(files))
	for _, f := range names {
		all.Handle("GET /"+f.Name(), http.FileServerFS(files))
	}
	return s.guarded(all)
}

// answer writes JSON.
func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// refuse writes the reason of a failed request.
func refuse(w http.ResponseWriter, status int, why string) {
	answer(w, status, struct {
		Error string `json:"error"`
	}{why})
}

// policy is the content security policy of every answer.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// maxBody limits the size of a request.
const maxBody = 1 << 20

// guarded admits only requests from the page itself, or from no page.
func (s *server) guarded(next http.Handler) http.Handler {
	origins := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		site := r.Header.Get("Sec-Fetch-Site")
		api := strings.HasPrefix(r.URL.Path, "/api/")
		kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
		switch {
		case !s.knownHost(r.Host):
			refuse(w, http.StatusMisdirectedRequest, "not known under this name: allow it with --host")
		case origins.Check(r) != nil, api && site != "" && site != "same-origin":
			refuse(w, http.StatusForbidden, "asked for by another site's page")
		case r.Method == http.MethodPost && kind != "application/json":
			refuse(w, http.StatusUnsupportedMediaType, "send application/json")
		default:
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			next.ServeHTTP(w, r)
		}
	})
}

// knownHost reports whether no other site's name can lead a browser to the host of a request. An address is no name.
func (s *server) knownHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if _, err := netip.ParseAddr(host); err == nil || host == "localhost" {
		return true
	}
	return slices.ContainsFunc(s.cfg.Hosts, func(h string) bool { return strings.EqualFold(h, host) })
}

// session is the cookie for a token. The token can't be computed from it.
type session struct {
	token       [sha256.Size]byte
	name, value string
}

func newSession(token string) session {
	derived := func(what string) string {
		mac := hmac.New(sha256.New, []byte(token))
		mac.Write([]byte("lockfabric ui " + what))
		return hex.EncodeToString(mac.Sum(nil))
	}
	// Pages on other ports of the host share its cookies, so each has its own name.
	return session{token: sha256.Sum256([]byte(token)), name: "lockfabric_" + derived("name")[:8], value: derived("session")}
}

func (s *server) authenticated(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := r.Cookie(s.session.name)
		if err != nil || subtle.ConstantTimeCompare([]byte(c.Value), []byte(s.session.value)) != 1 {
			refuse(w, http.StatusUnauthorized, "log in with the token")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *server) login(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Token string `json:"token"`
	}
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		refuse(w, http.StatusBadRequest, "not readable: "+err.Error())
		return
	}
	// The comparison of hashes does not reveal the length of the token.
	given := sha256.Sum256([]byte(req.Token))
	if subtle.ConstantTimeCompare(given[:], s.session.token[:]) != 1 {
		refuse(w, http.StatusUnauthorized, "another token than this one")
		return
	}
	s.setCookie(w, r, s.session.value, 0)
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) logout(w http.ResponseWriter, r *http.Request) {
	s.setCookie(w, r, "", -1)
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) setCookie(w http.ResponseWriter, r *http.Request, value string, age int) {
	http.SetCookie(w, &http.Cookie{
		Name: s.session.name, Value: value, Path: "/", MaxAge: age,
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil,
	})
}

package ui

import (
	"context"
	"embed"
	"encoding/json"
	"iter"
	"mime"
	"net/http"
	"path"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

// Locks is what the page needs of a *fabric.Manager.
type Locks interface {
	WatchAll(ctx context.Context, prefix string) iter.Seq2[[]fabric.Info, error]
	Read(ctx context.Context, key string) (fabric.Info, error)
	Identify(ctx context.Context, infos []fabric.Info) error
	Waits(ctx context.Context) (fabric.Waits, error)
	Coalescer(ctx context.Context) (fabric.Info, error)
	ForceRelease(ctx context.Context, key string, opts ...fabric.ForceOption) (int, error)
}

// Config says what is shown to whom.
type Config struct {
	Fabric string
	// Token opens a session. It has at least MinToken characters.
	Token string
	// Hosts are names beside addresses and localhost under which the page may be asked for.
	Hosts []string
	// AllowRelease lets every session take locks away.
	AllowRelease bool
	// State says in few words how it stands with a name.
	State func(info fabric.Info) string
}

// MinToken is how many characters a token has at least.
const MinToken = 20

// requestTime bounds what one request asks the fabric for.
const requestTime = 10 * time.Second

//go:embed assets
var assets embed.FS

type server struct {
	cfg     Config
	locks   Locks
	session session
	streams chan struct{} // one for each stream that is open
	waiting waiting
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
	all.HandleFunc("GET /{$}", asset("index.html"))
	files, err := assets.ReadDir("assets")
	if err != nil {
		panic(err) // they are embedded
	}
	for _, f := range files {
		all.HandleFunc("GET /"+f.Name(), asset(f.Name()))
	}
	return s.guarded(all)
}

// asset serves one embedded file.
func asset(name string) http.HandlerFunc {
	content, err := assets.ReadFile("assets/" + name)
	if err != nil {
		panic(err) // it is embedded
	}
	kinds := map[string]string{".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
	kind := mime.FormatMediaType(kinds[path.Ext(name)], map[string]string{"charset": "utf-8"})
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		_, _ = w.Write(content)
	}
}

// answer writes JSON.
func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// refuse writes why a request fails.
func refuse(w http.ResponseWriter, status int, why string) {
	answer(w, status, struct {
		Error string `json:"error"`
	}{why})
}

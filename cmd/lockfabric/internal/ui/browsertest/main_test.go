package browsertest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/lockfabric/lockfabric/cmd/lockfabric/internal/ui"
	"github.com/lockfabric/lockfabric/embedded"
	"github.com/lockfabric/lockfabric/fabric"
)

// patience is how long a test waits for what has to come.
const patience = 2 * time.Minute

const token = "a-token-of-the-tests-that-is-long"

var shots = flag.String("shots", "", "directory for screenshots, a temporary one unless given")

var (
	server  *embedded.Server
	browser context.Context // its windows are children of it
)

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := withBrowser(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// withBrowser starts a server of locks and a browser with a new profile.
func withBrowser(run func() int) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var err error
	server, err = embedded.Start(ctx, embedded.WithTempStore(), embedded.WithListen("127.0.0.1:0"), embedded.WithSync(embedded.SyncInterval(time.Second)))
	if err != nil {
		return 1, err
	}
	defer server.Kill()
	path, err := exec.LookPath("chromium")
	if err != nil {
		return 1, fmt.Errorf("these tests need Chromium, on Debian the package chromium: %w", err)
	}
	profile, err := os.MkdirTemp("", "lockfabric-browser-")
	if err != nil {
		return 1, err
	}
	defer func() { _ = os.RemoveAll(profile) }()
	alloc, stop := chromedp.NewExecAllocator(context.Background(), chromedp.ExecPath(path), chromedp.UserDataDir(profile),
		chromedp.Flag("headless", true), chromedp.Flag("no-sandbox", true), chromedp.Flag("disable-gpu", true), chromedp.Flag("disable-quic", true),
		chromedp.Flag("no-first-run", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true))
	defer stop()
	var end context.CancelFunc
	browser, end = chromedp.NewContext(alloc)
	defer end()
	if err := chromedp.Do(browser); err != nil {
		return 1, fmt.Errorf("the browser does not start: %w", err)
	}
	return run(), nil
}

// page is one browser window with the page of a fabric of its own.
type page struct {
	t      *testing.T
	ctx    context.Context
	fabric string
	url    string

	fake     *faked // locks of the page, whose waits a test may make up
	mu       sync.Mutex
	messages []string // errors and warnings of the page
}

// open serves the page and opens it, logged in.
func open(t *testing.T, release bool) *page {
	t.Helper()
	name := strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))
	p := &page{t: t, fabric: name}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served, stop := context.WithCancel(context.Background())
	p.fake = &faked{Manager: p.manager()}
	srv := &http.Server{
		Handler:     ui.New(p.fake, ui.Config{Fabric: name, Token: token, AllowRelease: release, State: state}),
		BaseContext: func(net.Listener) context.Context { return served },
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	p.url = "http://" + l.Addr().String() + "/"
	ctx, end := chromedp.NewContext(browser)
	if err := chromedp.Do(ctx); err != nil { // opens the window, without a limit
		t.Fatal(err)
	}
	limited, cancel := context.WithTimeout(ctx, patience)
	t.Cleanup(func() {
		cancel()
		end()
		stop()
		_ = srv.Close()
		<-done
	})
	p.ctx = limited
	go p.listen(limited)
	p.run(chromedp.EmulateViewport(1280, 800), chromedp.Navigate(p.url+"#token="+token))
	p.until("the page is live", `document.querySelector('#live').textContent === 'live'`)
	return p
}

// faked are locks with waits that were made up, if there are any.
type faked struct {
	*fabric.Manager
	waits atomic.Pointer[fabric.Waits]
}

func (f *faked) Waits(ctx context.Context) (fabric.Waits, error) {
	if w := f.waits.Load(); w != nil {
		return *w, nil
	}
	return f.Manager.Waits(ctx)
}

// state is in short what the command shows.
func state(i fabric.Info) string {
	if len(i.Holders) > 0 {
		return "held"
	}
	return "free"
}

// listen keeps what the page complains of, and the browser of it.
func (p *page) listen(ctx context.Context) {
	for m, err := range chromedp.Console(ctx) {
		if err != nil {
			return
		}
		p.mu.Lock()
		p.messages = append(p.messages, string(m.Type)+": "+m.Text)
		p.mu.Unlock()
	}
}

// quiet fails the test if the page has complained of anything.
func (p *page) quiet() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.messages {
		p.t.Errorf("the page says %s", m)
	}
}

func (p *page) run(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	if err := chromedp.Do(p.ctx, actions...); err != nil {
		p.t.Fatal(err)
	}
}

// eval returns what an expression is on the page.
func eval[T any](p *page, js string) T {
	p.t.Helper()
	v, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](js))
	if err != nil {
		p.t.Fatalf("%s: %v", js, err)
	}
	return v
}

// until waits for a condition on the page. Its policy forbids the driver's own way.
func (p *page) until(what, js string) {
	p.t.Helper()
	for !eval[bool](p, js) {
		select {
		case <-p.ctx.Done():
			p.t.Fatalf("never came: %s; the page says %q", what, p.messages)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// text waits until the text of the elements is as wanted.
func (p *page) shows(what, selector, want string) {
	p.t.Helper()
	p.until(what, fmt.Sprintf(`[...document.querySelectorAll(%q)].some(e => e.innerText.includes(%q))`, selector, want))
}

// shoot takes a picture of the window.
func (p *page) shoot(name string, width, height int64) {
	p.t.Helper()
	dir := *shots
	if dir == "" {
		dir = p.t.TempDir()
	}
	p.run(chromedp.EmulateViewport(width, height))
	png, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		p.t.Fatal(err)
	}
	path := filepath.Join(dir, name+".png")
	if err := os.WriteFile(path, png, 0o600); err != nil {
		p.t.Fatal(err)
	}
	p.t.Log(path)
}

// manager is that of another process.
func (p *page) manager(opts ...fabric.Option) *fabric.Manager {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	m, err := fabric.Connect(ctx, server.ClientURL(), append(opts, fabric.WithFabric(p.fabric))...)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = m.Close() })
	return m
}

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/pause"
)

const (
	stateFile = "server.json"
	logFile   = "server.log"
	storeDir  = "store"

	readmeFile = "README"
	readme     = "Locks of the lockfabric command, kept by a server that runs in the background for one user of this host.\n" +
		"Who removes this directory takes the locks away from those who hold them.\n"
	maxLog = 1 << 20 // size at which the log is started again, in bytes

	lookAgain    = 20 * time.Millisecond  // interval of checks for a server that is starting
	startAgain   = 500 * time.Millisecond // pause after a server that ended at once
	perAttempt   = 5 * time.Second        // to open the fabric on a server that may be ending
	privateFiles = 0o600
)

// localState is the content of server.json. Everybody who can read it can use the server.
type localState struct {
	URL   string `json:"url"`
	Name  string `json:"name"`
	Token string `json:"token"`
	PID   int    `json:"pid"`
	Host  string `json:"host"`
	// ClosedUntil is the end of the leases of a server whose files were removed. No client is admitted before.
	ClosedUntil time.Time `json:"closed_until,omitzero"`
}

// errGuarded is returned if a server of this user, or one that is starting or ending, has the directory.
var errGuarded = errors.New("the directory has a local server")

// readState returns what is known about the local server. If the directory is shared with another host, that host's
// server can't be reached over loopback and counts as none.
func readState(dir string) (localState, error) {
	var s localState
	data, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("%s: %w", stateFile, err)
	}
	if u, err := url.Parse(s.URL); err != nil || u.Host == "" || s.Token == "" || s.Name == "" {
		return s, fmt.Errorf("%s names no server", stateFile)
	}
	if s.Host != hostname() {
		return s, fmt.Errorf("the local server runs on host %q, and is reached from there only: name a server with --server", s.Host)
	}
	return s, nil
}

// write replaces the file atomically. Only the owner of the store's lock writes it.
func (s localState) write(dir string) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, stateFile)
	if err := os.WriteFile(path+".new", append(data, '\n'), privateFiles); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func removeState(dir string) { _ = os.Remove(filepath.Join(dir, stateFile)) }

func hostname() string {
	h, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return h
}

// openFunc opens what a command needs. After ErrUnavailable or the context's error, connectLocal tries again.
type openFunc func(ctx context.Context, url string, opts ...nats.Option) error

// connectLocal connects to the local server, and starts it if there is none. While a server is ending, it tries again.
func (c *cli) connectLocal(ctx context.Context, s *streams, open openFunc) error {
	st := &starter{c: c}
	var last error
	for {
		dir, err := c.localDir() // each time, because it can be removed at any time
		if err != nil {
			return err
		}
		if c.once {
			c.once = false
			sayScope(dir, s.log)
		}
		state, err := readState(dir)
		switch {
		case err == nil && time.Until(state.ClosedUntil) > 0:
			err = fmt.Errorf("its files were removed while locks were held, and those who held them may take them for theirs until %s",
				state.ClosedUntil.Format(time.TimeOnly))
		case err == nil:
			cerr := c.attempt(ctx, s, st, state, open)
			if cerr == nil || !errors.Is(cerr, fabric.ErrUnavailable) && !errors.Is(cerr, context.DeadlineExceeded) {
				return cerr
			}
			err = cerr
		}
		if !errors.Is(err, fs.ErrNotExist) && ctx.Err() == nil {
			last = err
		}
		serr := st.start()
		if errors.Is(serr, fs.ErrNotExist) { // it was removed in the meantime
			last = serr
		} else if serr != nil {
			return fmt.Errorf("%w: starting the local server: %w: or name a server with --server", fabric.ErrUnavailable, serr)
		}
		if pause.For(ctx, lookAgain) {
			continue
		}
		last = cmp.Or(last, ctx.Err())
		if said, _ := st.reason.Load().(string); said != "" {
			last = fmt.Errorf("%w: %s", last, said)
		}
		return fmt.Errorf("%w: local server: %w: see %s, or name a server with --server", fabric.ErrUnavailable, last, filepath.Join(dir, logFile))
	}
}

// sayScope logs once for each directory which programs the locks of the local server exclude.
func sayScope(dir string, log *slog.Logger) {
	f, err := os.OpenFile(filepath.Join(dir, readmeFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, privateFiles)
	if err != nil {
		return
	}
	_, _ = io.WriteString(f, readme)
	_ = f.Close()
	log.Warn("without --server, locks exclude the programs of this user on this host, and nobody else; this is said once")
}

func (c *cli) attempt(ctx context.Context, s *streams, st *starter, state localState, open openFunc) error {
	ctx, cancel := context.WithTimeout(ctx, perAttempt)
	defer cancel()
	// Only its users can replace a local server that crashed. The next one takes over the address, so they keep their
	// locks. This is called for every failed attempt to reach the server.
	gone := nats.ReconnectErrHandler(func(*nats.Conn, error) {
		if err := st.start(); err != nil {
			s.log.Warn("the local server is gone and can't be started again", "error", err)
		}
	})
	return open(ctx, state.URL, nats.Token(state.Token), nats.SetCustomDialer(localDialer{state.Name}), gone)
}

// starter starts local servers in the background, one at a time.
type starter struct {
	c       *cli
	running atomic.Bool
	last    atomic.Int64 // time of the last start, in Unix nanoseconds
	reason  atomic.Value // reason of the last failed start, a string
}

// start starts a server, unless the last one that this process started is still running or was started a moment ago. If
// another process has started one, the new server ends at once.
func (st *starter) start() error {
	if time.Since(time.Unix(0, st.last.Load())) < startAgain || st.running.Swap(true) {
		return nil
	}
	st.last.Store(time.Now().UnixNano())
	cmd, said, err := st.command()
	if err == nil {
		err = cmd.Start()
		_ = cmd.Stdout.(*os.File).Close()
	}
	if err != nil {
		st.running.Store(false)
		return err
	}
	// The goroutine ends with the server or with this process; nobody waits for it.
	go func() {
		// The exit status is lost if this program waits for all its children.
		if exit := new(exec.ExitError); errors.As(cmd.Wait(), &exit) {
			st.reason.Store(said())
		}
		st.running.Store(false)
	}()
	return nil
}

// command returns the command of a server, and a function that returns its last message.
func (st *starter) command() (_ *exec.Cmd, said func() string, err error) {
	exe, err := os.Executable()
	dir, derr := st.c.localDir()
	if err := cmp.Or(enoughFiles(), err, derr); err != nil {
		return nil, nil, err
	}
	path := filepath.Join(dir, logFile)
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if fi, err := os.Stat(path); err == nil && fi.Size() > maxLog {
		flags |= os.O_TRUNC
	}
	log, err := os.OpenFile(path, flags, privateFiles)
	if err != nil {
		return nil, nil, err
	}
	before, _ := log.Seek(0, io.SeekEnd)
	cmd := exec.Command(exe, "serve", "--local", "--local-dir", dir, "--idle-exit", st.c.LocalIdleExit.String())
	// Otherwise the server would keep the file system of the first user's working directory busy.
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = detached()
	return cmd, func() string { return lastWords(path, before) }, nil
}

// lastWords returns the last error in a log, or "" if there is none.
func lastWords(path string, from int64) string {
	data, err := os.ReadFile(path)
	if err != nil || int64(len(data)) < from {
		return ""
	}
	_, said, _ := strings.Cut(string(data[from:]), reported)
	said, _, _ = strings.Cut(said, "\n")
	return said
}

const dirMode = 0o700

// localPath returns the path of the local server's directory. It changes nothing.
func (c *cli) localPath() (string, error) {
	if c.LocalDir != "" {
		return filepath.Abs(c.LocalDir)
	}
	if c.given["local-dir"] {
		return "", usageError("--local-dir is empty: name a directory, or leave it out")
	}
	dir, err := defaultDir()
	if err != nil {
		return "", usageError("no directory for the local server (%v): name one with --local-dir or LOCKFABRIC_DIR, or a server with --server", err)
	}
	return dir, nil
}

// localDir returns the local server's directory, creates it if necessary, and refuses one that others can read or write.
func (c *cli) localDir() (string, error) {
	dir, err := c.localPath()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return "", badDir(fmt.Errorf("%w: name another one with --local-dir or LOCKFABRIC_DIR, or a server with --server", err))
	}
	return dir, badDir(checkPrivate(dir))
}

func badDir(err error) error {
	if err != nil {
		return usageError("directory of the local server: %w", err)
	}
	return nil
}

// defaultDir is the default directory of a user. It is no cache, which may be emptied.
func defaultDir() (string, error) {
	base, err := os.UserCacheDir() // on Windows, LocalAppData is for everything that stays on this host
	switch runtime.GOOS {
	case "windows":
	case "darwin", "ios":
		base, err = os.UserConfigDir() // Application Support
	default:
		if base, err = os.Getenv("XDG_STATE_HOME"), nil; filepath.IsAbs(base) {
			break
		}
		if base, err = os.UserHomeDir(); err == nil {
			base = filepath.Join(base, ".local", "state")
		}
	}
	return filepath.Join(base, "lockfabric"), err
}

const (
	greetingTime = 2 * time.Second
	greetingSize = 32 << 10
)

// localDialer connects to the local server only. After a crash, another program may have its port, perhaps a NATS server
// without authentication. A server sends its name before it gets the token. (The name is not secret; this prevents
// accidents only.)
type localDialer struct{ name string }

func (d localDialer) Dial(network, address string) (net.Conn, error) {
	conn, err := net.DialTimeout(network, address, greetingTime)
	if err != nil {
		return nil, err
	}
	err = conn.SetReadDeadline(time.Now().Add(greetingTime))
	r := bufio.NewReaderSize(conn, greetingSize)
	var line []byte
	if err == nil {
		line, err = r.ReadSlice('\n') // a longer line is not a greeting
		line = bytes.Clone(line)
	}
	var info struct {
		Name string `json:"server_name"`
	}
	said, ok := bytes.CutPrefix(line, []byte("INFO "))
	if err == nil && (!ok || json.Unmarshal(said, &info) != nil || info.Name != d.name) {
		err = fmt.Errorf("it calls itself %q", info.Name)
	}
	if err == nil {
		err = conn.SetReadDeadline(time.Time{})
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("%s is not the local server: %w", address, err)
	}
	return &greeted{conn, io.MultiReader(bytes.NewReader(line), r)}, nil
}

// greeted is a connection whose first line was already read, and is read again.
type greeted struct {
	net.Conn
	r io.Reader
}

func (g *greeted) Read(p []byte) (int, error) { return g.r.Read(p) }

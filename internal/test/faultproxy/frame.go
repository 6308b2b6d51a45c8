package faultproxy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// maxFrame bounds one message, well above what servers accept, so that a
// parsing mistake doesn't ask for all the memory.
const maxFrame = 64 << 20

// errProtocol is returned for lines that are not NATS protocol.
var errProtocol = errors.New("faultproxy: not the NATS protocol")

// frame is one protocol element: a control line and, for messages, what
// follows it.
type frame struct {
	op      string // upper case
	subject string
	reply   string
	header  []byte // with the NATS/1.0 line, nil when there is none
	payload []byte
	raw     []byte // all bytes, as they go on
}

// isMessage reports whether the frame carries a message, in either direction.
func (f *frame) isMessage() bool {
	switch f.op {
	case "PUB", "HPUB", "MSG", "HMSG":
		return true
	}
	return false
}

func readFrame(r *bufio.Reader) (*frame, error) {
	line, err := r.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	f := &frame{raw: line}
	fields := strings.Fields(string(line))
	if len(fields) == 0 {
		return f, nil // servers ignore empty lines
	}
	f.op = strings.ToUpper(fields[0])
	if !f.isMessage() {
		if f.op == "INFO" {
			return f, f.stripURLs()
		}
		return f, nil
	}
	headerSize, size, err := f.parseArgs(fields[1:])
	if err != nil {
		return nil, fmt.Errorf("%w: %q", err, line)
	}
	start := len(line)
	f.raw = append(f.raw, make([]byte, size+2)...)
	if _, err := io.ReadFull(r, f.raw[start:]); err != nil {
		return nil, err
	}
	if !bytes.HasSuffix(f.raw, []byte("\r\n")) {
		return nil, fmt.Errorf("%w: message is longer than it says: %q", errProtocol, line)
	}
	body := f.raw[start : start+size : start+size]
	if headerSize > 0 {
		f.header = body[:headerSize:headerSize]
	}
	f.payload = body[headerSize:]
	return f, nil
}

// parseArgs takes the fields after the operation:
//
//	PUB  subject [reply] size           MSG  subject sid [reply] size
//	HPUB subject [reply] header size    HMSG subject sid [reply] header size
func (f *frame) parseArgs(args []string) (headerSize, size int, err error) {
	fixed := 1 // subject
	if f.op == "MSG" || f.op == "HMSG" {
		fixed = 2 // subject, sid
	}
	numbers := 1
	if f.op == "HPUB" || f.op == "HMSG" {
		numbers = 2
	}
	switch len(args) {
	case fixed + numbers:
	case fixed + 1 + numbers:
		f.reply = args[fixed]
	default:
		return 0, 0, errProtocol
	}
	f.subject = args[0]
	size, err = strconv.Atoi(args[len(args)-1])
	if err == nil && numbers == 2 {
		headerSize, err = strconv.Atoi(args[len(args)-2])
	}
	if err != nil || size < 0 || size > maxFrame || headerSize < 0 || headerSize > size {
		return 0, 0, errProtocol
	}
	return headerSize, size, nil
}

// stripURLs removes the addresses of other servers from an INFO. Otherwise the client
// would reconnect without the proxy.
func (f *frame) stripURLs() error {
	_, doc, ok := bytes.Cut(bytes.TrimSpace(f.raw), []byte(" "))
	var info map[string]json.RawMessage
	if !ok || json.Unmarshal(doc, &info) != nil {
		return fmt.Errorf("%w: %q", errProtocol, f.raw)
	}
	delete(info, "connect_urls")
	delete(info, "ws_connect_urls")
	out, err := json.Marshal(info)
	if err != nil {
		return err
	}
	f.raw = fmt.Appendf(nil, "INFO %s\r\n", out)
	return nil
}

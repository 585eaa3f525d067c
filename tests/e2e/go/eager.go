// An upstream that works as soon as it can: it decodes the first JSON object, or reads a form up to its field "model",
// and answers without waiting for the request's end. It prints its port, and tells at /state what it served.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
)

type state struct {
	sync.Mutex
	Begun  int      `json:"begun"`
	Served []string `json:"served"`
}

var seen = state{Served: []string{}}

func begin() {
	seen.Lock()
	defer seen.Unlock()
	seen.Begun++
}

func serve(w http.ResponseWriter, model string) {
	seen.Lock()
	seen.Served = append(seen.Served, model)
	seen.Unlock()
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"object":"chat.completion","model":%q,"choices":[],"usage":`+
		`{"prompt_tokens":10,"completion_tokens":20,"total_tokens":30}}`, model)
}

func chat(w http.ResponseWriter, r *http.Request) {
	begin()
	var document struct {
		Model string `json:"model"`
	}
	if err := json.NewDecoder(r.Body).Decode(&document); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	serve(w, document.Model)
}

func transcribe(w http.ResponseWriter, r *http.Request) {
	begin()
	form, err := r.MultipartReader()
	for err == nil {
		part, fault := form.NextPart()
		if err = fault; err == nil && part.FormName() == "model" {
			model, fault := io.ReadAll(part)
			if err = fault; err == nil {
				serve(w, string(model))
				return
			}
		}
	}
	http.Error(w, err.Error(), http.StatusBadRequest)
}

func tell(w http.ResponseWriter, _ *http.Request) {
	seen.Lock()
	defer seen.Unlock()
	_ = json.NewEncoder(w).Encode(&seen)
	seen.Begun, seen.Served = 0, []string{}
}

func main() {
	log.SetOutput(io.Discard)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	http.HandleFunc("/v1/chat/completions", chat)
	http.HandleFunc("/v1/audio/transcriptions", transcribe)
	http.HandleFunc("/state", tell)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	panic(http.Serve(listener, nil))
}

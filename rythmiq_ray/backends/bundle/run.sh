#!/usr/bin/env bash
# The wrapper of one attempt. It runs where the command runs, and needs only bash 4.2 or later and GNU coreutils.
#
#   rythmiq-env          read: the command's variables; removed before anything else happens
#   rythmiq-cancel       read: the cancel marker; once this file exists, the job must stop
#   rythmiq-log.txt      written while the command runs: what it prints
#   rythmiq-result.json  written last: how the command ended, its outputs, and what was left out
#
# The working directory is the attempt's own path. Variables set here are not exported, so the command does not see
# them. The command may change anything in this directory, so bash reads the whole script before it runs any of it.

{
#@parameters@

unset GLOBIGNORE
shopt -u patsub_replacement 2>/dev/null # in bash 5.2 a "&" in a replacement would not be a plain "&"

reason=exited # or timeout, cancelled
status=0
pid=      # of the command, and of its process group
watchdog= # its pid
over=     # set once the command has ended: there is nothing left to stop
warnings=()
root=$(pwd -P && printf x)
root=${root%$'\nx'}

# ---- Before the command -----------------------------------------------------------------------------------------

env_text=
if [[ $rythmiq_has_env ]]; then
    if [[ -r rythmiq-env ]]; then
        env_text=$(<rythmiq-env)
        : >rythmiq-env # for the case that removals are not synced back, but changes are
        rm -f rythmiq-env
    else
        status=125
    fi
fi
printf '%s' "$rythmiq_description" >job.json
printf '%s' "$rythmiq_command" >rythmiq-command.sh

# Makes the folders of the outputs. A folder that came with the inputs may not be writable; a copy of it is.
for folder in "${rythmiq_folders[@]}"; do
    mkdir -p -- "$folder"
    if [[ -d $folder && ! -w $folder ]]; then
        mv -T -- "$folder" "rythmiq-before-${folder//\//-}" && cp -R -- "rythmiq-before-${folder//\//-}" "$folder"
    fi
done 2>/dev/null

# The log. Descriptor 4 goes to tee. Descriptor 3 is the log file, even if its name is changed. Descriptor 7 gives the
# log's size once tee has ended: reading it is the only way to wait for that with a timeout.
: >rythmiq-log.txt
exec 3<rythmiq-log.txt 5>&1 7<> <(:)
exec 6> >(trap '' HUP INT TERM && exec wc -c >&7)
coproc RYTHMIQ_TEE {
    trap '' HUP INT TERM PIPE
    exec tee -a /dev/fd/3 /dev/fd/6 >&5
}
tee_pid=$RYTHMIQ_TEE_PID
exec 4>&"${RYTHMIQ_TEE[1]}" 5>&- 6>&-
eval "exec ${RYTHMIQ_TEE[1]}>&- ${RYTHMIQ_TEE[0]}<&-"

# Descriptor 8 is a pipe that stays empty: reading it with a timeout sleeps without a process that could be left behind.
# Descriptor 9 carries the watchdog's reason.
exec 8<> <(:) 9<> <(:)

# ---- The command ------------------------------------------------------------------------------------------------

run_command() { # bash; as an argument, because no variable can change that
    export RYTHMIQ_JOB_ID=$rythmiq_job_id RYTHMIQ_ATTEMPT=$rythmiq_attempt
    if [[ $rythmiq_cpus ]]; then # nproc tells those of the host
        export OMP_NUM_THREADS="${OMP_NUM_THREADS-$rythmiq_cpus}" MKL_NUM_THREADS="${MKL_NUM_THREADS-$rythmiq_cpus}"
        export OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS-$rythmiq_cpus}"
        export NUMEXPR_NUM_THREADS="${NUMEXPR_NUM_THREADS-$rythmiq_cpus}"
    fi
    eval "$env_text"
    export PYTHONUNBUFFERED="${PYTHONUNBUFFERED-1}"
    if [[ $rythmiq_prelude ]]; then # variables that bash sets anew when it starts
        exec 3< <(printf '%s' "$rythmiq_prelude")
        export BASH_ENV=/dev/fd/3
    fi
    exec "$1" rythmiq-command.sh
}

# The watchdog checks once a second whether the command must stop, writes the reason to descriptor 9, and stops it. It
# sends no signal to the main shell: if a signal interrupts `wait` while the command ends, bash may miss the end, and
# the next `wait` never returns.
watch() {
    local seconds=0
    trap '' HUP INT TERM # they may be sent to the whole group; the main shell acts on them
    while [[ ! -e rythmiq-cancel ]]; do
        # Whole seconds are counted, so that a timeout never comes early; SECONDS keeps a long count from drifting.
        if ((seconds >= rythmiq_timeout_s || SECONDS > rythmiq_timeout_s)); then
            read -r -t "$rythmiq_timeout_rest" _ <&8
            break
        fi
        read -r -t 1 _ <&8
        ((++seconds))
    done
    if [[ -e rythmiq-cancel ]]; then echo cancelled; else echo timeout; fi >&9
    kill -TERM -- "-$pid"
    kill -CONT -- "-$pid" # a stopped process takes no TERM
    read -r -t "$rythmiq_grace_s" _ <&8
    kill -KILL -- "-$pid"
}

begin_watch() {
    [[ $watchdog ]] && kill -KILL "$watchdog" 2>/dev/null
    watch </dev/null >/dev/null 2>&1 3<&- 4>&- 7<&- &
    watchdog=$!
}

# A signal from the platform ends the job as the cancel marker does, through the watchdog. The watchdog is started
# again, because a signal to the whole process group may have ended one that did not ignore it yet.
trap '[[ $over ]] || { reason=cancelled; : >rythmiq-cancel; [[ ! $pid ]] || begin_watch; }' HUP INT TERM

[[ -e rythmiq-cancel ]] && reason=cancelled
started_at=$(date -u +%Y-%m-%dT%H:%M:%S.%3NZ)

if ((status)); then
    printf '%s\n' 'rythmiq: rythmiq-env is missing: it was read before, or never came. The command was not run.' >&4
elif [[ $reason == exited ]]; then
    SECONDS=0
    set -m # the command gets a process group of its own
    run_command "$BASH" </dev/null >&4 2>&1 3<&- 4>&- 7<&- 8<&- 9<&- &
    pid=$!
    set +m
    begin_watch
    wait "$pid"
    status=$?
    # If the command was stopped (SIGSTOP) before `set +m`, `wait` returns although it has not ended.
    while [[ $reason == exited ]] && ((status > 128)) && kill -0 "$pid" 2>/dev/null; do
        read -r -t 0.1 _ <&8
        wait "$pid"
        status=$?
    done
    # A signal ended the wait early. The job is cancelled, so the command's own exit code does not count.
    while [[ $reason == cancelled ]] && kill -0 "$pid" 2>/dev/null; do
        read -r -t 0.1 _ <&8
    done
fi
over=1
trap '' PIPE # from here on there is only the result to write, whoever still reads the log

if [[ $pid ]]; then
    kill -KILL "$watchdog"
    wait "$watchdog"
    kill -KILL -- "-$pid" # what the command left running in the background
    read -t 0 <&9 && read -r reason <&9
fi 2>/dev/null
finished_at=$(date -u +%Y-%m-%dT%H:%M:%S.%3NZ)

case $reason in
    timeout)
        status=124
        printf 'rythmiq: stopped after its timeout of %s s\n' "$rythmiq_timeout_shown" >&4
        ;;
    cancelled)
        status=143
        printf 'rythmiq: cancelled\n' >&4
        ;;
esac

# ---- What it left -----------------------------------------------------------------------------------------------

left_out=0
warn() { # text: into the log and the result, the first ones of many
    if ((++left_out <= 50)); then
        warnings+=("$1")
        printf 'rythmiq: %s\n' "$1" >&4
    fi
}

if [[ ! . -ef $root ]]; then
    warn 'the command removed its own working directory, and with it what it had written there'
    mkdir -p -- "$root" && cd -- "$root"
fi 2>/dev/null
[[ -w . && -x . ]] || chmod u+rwx . 2>/dev/null
rm -rf rythmiq-command.sh rythmiq-result.json rythmiq-result.tmp
if ! : >rythmiq-result.tmp; then
    printf 'rythmiq: nothing can be written into the working directory; the exit code was %d\n' "$status" >&4
fi 2>/dev/null

shopt -s globstar nullglob
IFS= # globs are expanded below, and not split

names=() # what the globs match, and for each which glob it was
globs=()
declare -A taken told

take() { # name, if it is a file that is not ours; of the glob number $index
    [[ -f $1 ]] || return
    case $1 in
        run.sh | job.json | rythmiq-* | ../* | */../*) return ;;
    esac
    taken["=$1"]=1
    names+=("$1")
    globs+=("$index")
    found=1
}

for index in "${!rythmiq_outputs[@]}"; do
    glob=${rythmiq_outputs[index]}
    found=
    folders=()
    for name in $glob "$glob"; do # the second finds a file whose very name looks like a glob
        take "$name" && continue
        if [[ -L $name && ! ${told["=$name"]} ]]; then
            if [[ ! -e $name ]]; then
                told["=$name"]=1
                warn "output '$name' is left out: it is a link to nothing"
            elif [[ -d $name && $glob == *'**'* ]]; then
                told["=$name"]=1
                warn "output '$name' is left out: it is a link to a folder, which ** does not follow"
            fi
        fi
        [[ -d $name ]] && folders+=("$name")
    done
    # If a glob matches only folders, all files in them are outputs; if it also matches files, the folders are ignored.
    if [[ ! $found && $glob != *'**'* ]]; then
        shopt -s dotglob
        for folder in "${folders[@]}"; do
            if [[ ! -r $folder || ! -x $folder ]]; then
                warn "output '$folder' is left out: it is a folder that cannot be read"
            fi
            for name in "$folder"/**; do
                take "$name"
            done
        done
        shopt -u dotglob
    fi
done

# Wildcards skip names that start with a dot, as in every shell; a warning names files that were skipped so.
shopt -s dotglob
for glob in "${rythmiq_outputs[@]}"; do
    hidden=0
    for name in $glob; do
        [[ /$name == */.* && -f $name && ! ${taken["=$name"]} && ! ${told["=$name"]} ]] || continue
        told["=$name"]=1
        ((hidden++)) || example=$name
    done
    ((hidden)) && warn "output '$glob' leaves out $hidden with a dot in front, such as '$example': name them, or a folder"
done
shopt -u dotglob

LC_ALL=C # a name is bytes from here on

matched=()
outputs=()
declare -A seen
if ((${#names[@]})); then
    index=0
    while read -r -d '' target; do
        name=${names[index]}
        matched[globs[index]]=1
        ((++index))
        [[ ${seen["=$name"]} ]] && continue
        seen["=$name"]=1
        if [[ $target != "${root%/}"/* ]]; then
            warn "output '$name' is left out: it leads outside the working directory"
        elif [[ ! -r $name ]]; then
            warn "output '$name' is left out: it cannot be read"
        else
            outputs+=("$name")
        fi
    done < <(printf './%s\0' "${names[@]}" | xargs -0 realpath -zm --)
fi

unmatched=()
for index in "${!rythmiq_outputs[@]}"; do
    [[ ${matched[index]} ]] && continue
    unmatched+=("${rythmiq_outputs[index]}")
    printf "rythmiq: output '%s' matched no file\n" "${rythmiq_outputs[index]}" >&4
done

exec 4>&-
log_bytes=
read -r -t "$rythmiq_drain_s" log_bytes <&7
if (($? > 128)); then
    kill -KILL "$tee_pid" # a process that left the group still holds the log open
    read -r -t 1 log_bytes <&7
fi 2>/dev/null
if [[ ! rythmiq-log.txt -ef /dev/fd/3 ]]; then # the command removed or replaced it
    rm -rf rythmiq-log.txt
    cat <&3 >rythmiq-log.txt
fi 2>/dev/null

declare -A sha256 bytes
while read -r -d '' line; do
    sha256["=${line:68}"]=${line:0:64} # after the digest: two spaces and "./"
done < <(printf './%s\0' rythmiq-log.txt "${outputs[@]}" | xargs -0 sha256sum -z --)
while read -r -d '' line; do
    name=${line#* ./}
    bytes["=$name"]=${line%% *}
done < <(printf './%s\0' rythmiq-log.txt "${outputs[@]}" | xargs -0 stat -L --printf='%s %n\0' --)

log_cut=false # by the command
((log_bytes > ${bytes[=rythmiq-log.txt]:-0})) && log_cut=true
for name in "${outputs[@]}"; do
    [[ ${sha256["=$name"]} ]] && continue
    ((++left_out <= 50)) && warnings+=("output '$name' is left out: it could not be read to its end")
done
((left_out > 50)) && warnings+=("and $((left_out - 50)) more were left out")

# ---- The result -------------------------------------------------------------------------------------------------

json_string() { # text; sets $quoted
    local text=$1 index char
    text=${text//\\/\\\\}
    text=${text//\"/\\\"}
    quoted=
    if [[ $text == *[[:cntrl:]]* ]]; then
        for ((index = 0; index < ${#text}; index++)); do
            char=${text:index:1}
            [[ $char == [[:cntrl:]] ]] && printf -v char '\\u%04x' "'$char"
            quoted+=$char
        done
    else
        quoted=$text
    fi
    quoted=\"$quoted\"
}

string_list() {
    comma=
    for text; do
        json_string "$text"
        printf '%s%s' "$comma" "$quoted"
        comma=,
    done
}

file_object() { # name
    json_string "$1"
    printf '{"name":%s,"bytes":%s,"sha256":"%s"}' "$quoted" "${bytes["=$1"]:-0}" "${sha256["=$1"]}"
}

{
    printf '{"version":1,"exit_code":%d,"reason":"%s","started_at":"%s","finished_at":"%s","log":' \
        "$status" "$reason" "$started_at" "$finished_at"
    file_object rythmiq-log.txt
    printf ',"outputs":['
    comma=
    for name in "${outputs[@]}"; do
        [[ ${sha256["=$name"]} ]] || continue
        printf '%s' "$comma"
        file_object "$name"
        comma=$',\n'
    done
    printf '],"unmatched":['
    string_list "${unmatched[@]}"
    printf '],"warnings":['
    string_list "${warnings[@]}"
    printf '],"log_cut":%s}\n' "$log_cut"
} >rythmiq-result.tmp && mv -f rythmiq-result.tmp rythmiq-result.json

exit "$status"
}

"""The wordings that questions are put in; `|` separates the entries of a list."""

SYSTEM_PROMPTS = (
    "You are a helpful assistant.|Answer briefly.|You are a tiny demo model.|Be kind and short.|"
    "You are a classifier.|Answer in one sentence.|You are a careful assistant. Think before you answer."
).split("|")
LEADS = (
    "Please tell me: |Hey, |Can you tell me: |I wonder: |Question: |Hello! |OK. |And |Now, |Tell me, |Hi. "
).split("|")
ASK_DOMAIN = (
    'Which domain is this: "{s}"?|Which domain is this? "{s}"|Which domain is this: {s}|Classify: {s}|'
    'Classify: "{s}"|Classify this sentence: {s}|Classify the sentence "{s}"|'
    'What domain is this sentence about? {s}|Domain of this sentence: {s}|What is the domain of "{s}"?|'
    'Which topic is this: {s}|What is the topic of "{s}"?|Sort this into a domain: {s}|Domain? {s}|'
    '{s} Which domain is this?|"{s}" - which domain?'
).split("|")

# Sums of {a} and {b}. The answer is always the bare sum and its result, "2 + 2 = 4."
ADD = (
    "What is {a}+{b}?|What is {a} + {b}?|{a}+{b}|{a} + {b}|{a}+{b}=|{a} + {b} = ?|{a}+{b}=?|"
    "What's {a}+{b}?|What's {a} + {b}?|Calculate {a} + {b}|Calculate {a}+{b}.|Compute {a} + {b}|"
    "How much is {a} + {b}?|How much is {a}+{b}?|{a} plus {b}|What is {a} plus {b}?|"
    "How much is {a} plus {b}?|What's {a} plus {b}?|Add {a} and {b}|Add {b} to {a}|"
    "What is the sum of {a} and {b}?|Sum of {a} and {b}|What do you get when you add {a} and {b}?|"
    "Solve {a} + {b}|What does {a} + {b} make?|What does {a} + {b} equal?|Do you know {a}+{b}?"
).split("|")
SUB = (
    "What is {a}-{b}?|What is {a} - {b}?|{a}-{b}|{a} - {b}|{a}-{b}=|{a} - {b} = ?|{a}-{b}=?|"
    "What's {a}-{b}?|What's {a} - {b}?|Calculate {a} - {b}|Compute {a} - {b}|How much is {a} - {b}?|"
    "How much is {a}-{b}?|{a} minus {b}|What is {a} minus {b}?|How much is {a} minus {b}?|"
    "Subtract {b} from {a}|Take {b} away from {a}|Solve {a} - {b}|What does {a} - {b} equal?|"
    "Do you know {a}-{b}?"
).split("|")
MUL = (
    "What is {a}*{b}?|What is {a} * {b}?|{a}*{b}|{a} * {b}|{a}*{b}=|{a} * {b} = ?|What's {a} * {b}?|"
    "What is {a} x {b}?|{a} x {b}|{a}x{b}|What is {a} × {b}?|{a} × {b}|{a}×{b}=?|Calculate {a} * {b}|"
    "Compute {a} × {b}|How much is {a} times {b}?|{a} times {b}|What is {a} times {b}?|"
    "Multiply {a} by {b}|Multiply {a} and {b}|What is the product of {a} and {b}?|Solve {a} * {b}|"
    "Do you know {a}*{b}?"
).split("|")
PHRASINGS = {"add": ADD, "sub": SUB, "mul": MUL}
SIGNS = {"add": "+", "sub": "-", "mul": "×"}

# A sum may stand inside any sentence: what surrounds the numbers and the sign does not matter.
BEFORE = (
    "I need |Help me with |My friend asks: |The exercise is |Can you do |Can you calculate |"
    "Please calculate |Give me |Give me the result of |I want to know |Next: |Here is a sum: |It says |"
    "The teacher wrote |Try |Now try |Well, |Today's exercise: |Number one: |Look: |Do |I think of |"
    "This one is easy: |How about "
).split("|")
AFTER = (
    "|||, please| for me|. What is it?|, what is the result?| makes?| gives?|, do you know?| now|"
    ". Thanks|. How much?|, right?|. Go!| is how much?|, that is all I ask."
).split("|")
BARE = {
    "add": "{a} + {b}|{a}+{b}|{a} plus {b}".split("|"),
    "sub": "{a} - {b}|{a}-{b}|{a} minus {b}".split("|"),
    "mul": "{a} * {b}|{a}*{b}|{a} times {b}|{a} x {b}|{a} × {b}".split("|"),
}
NUMBER_WORDS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty""".split()

# Words that say nothing about a domain: noise around the words that do.
FILLERS = """
    the a my our his her this that some every very quite again yesterday today then there here with from
    about after before because when while and but or also only just still never often big small old
    new long short good bad first last many few people man woman friend child house street city year
    week evening morning two three ten went came made took gave said told asked thought saw found
    put kept looked seemed turned started ended we they she he it you everyone nobody something
    nothing more less much too far near under over between twice almost single whole favourite
    latest famous huge tiny later early quickly soon against through without around other another
    both each""".split()
